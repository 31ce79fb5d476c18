"use strict";
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
for (const select of document.querySelectorAll("select[data-gallery]")) {
  select.parentElement.hidden = false;
  select.addEventListener("change", () => {
    for (const card of document.getElementById(select.dataset.gallery).children) {
      card.hidden = select.value !== "" && !card.dataset.findings.split("|").includes(select.value);
    }
  });
}
for (const input of document.querySelectorAll("input[data-slides]")) {
  const slides = document.getElementById(input.dataset.slides).querySelectorAll("figure");
  const show = () => {
    slides.forEach((slide, n) => { slide.hidden = n !== Number(input.value); });
    input.parentElement.querySelector("output").value = slides[input.value].dataset.name;
  };
  input.parentElement.hidden = slides.length < 2;
  if (slides.length > 1) document.getElementById(input.dataset.slides).classList.add("moving");
  input.addEventListener("input", show);
  show();
}
