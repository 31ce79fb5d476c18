"""The demo in a browser: Gradio on localhost around a :class:`cxrl.output.playground.Playground`.

Nothing is asked of another machine: what Gradio's page would fetch from elsewhere is taken out of it.
"""

from __future__ import annotations

import html
import importlib
import os
import re
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError
from cxrl.images.png import SYNTHETIC, to_uint8
from cxrl.output.gallery import SIDE_NAMES, png_source
from cxrl.output.playground import MOST_IMAGES, NO_LABELS, Playground, Shown, Wish

STYLE = """
.cxrl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr));gap:14px}
.cxrl figure{margin:0;padding:10px;border:1px solid var(--border-color-primary);border-radius:8px}
.cxrl img{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#000;border-radius:4px}
.cxrl figcaption>b{display:block;margin:6px 0 2px}
.cxrl span{display:flex;justify-content:space-between;font-size:13px;font-variant-numeric:tabular-nums}
.cxrl span b{font-weight:400}.cxrl small{opacity:.75}
.cxrl-note{margin:6px 0 10px;opacity:.8;font-size:14px}
.cxrl-banner{padding:6px 12px;border-radius:6px;background:#fff1c9;color:#5a4300;font-weight:600}
footer{display:none !important}
"""
START = "Anchor and policy start from the same noise."
_OUTSIDE = re.compile(
    r"<(?:link|script|meta)\b[^>]*\bhttps?://(?!127\.0\.0\.1|localhost)[^>]*>(?:\s*</script>)?"
)


def import_gradio() -> Any:
    """Gradio, without its statistics and without a proxy. Raises CxrlError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio asks its own server whether it is there, and a proxy would not know.
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY", ""), "127.0.0.1")))
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise CxrlError("the demo needs Gradio: pip install 'cxrl[demo]'") from None


def pictures(shown: Sequence[Shown], note: str) -> str:
    """Images with their scores, as HTML."""
    cells = []
    for one in shown:
        lines = "".join(_line(task, value, one.rewarded.get(task)) for task, value in one.judged.items())
        name = SIDE_NAMES[one.side]
        seed = "" if one.side == "real" else f", seed {one.seed}"
        cells.append(
            f'<figure><img alt="{name}{seed}, synthetic" src="{png_source(to_uint8(one.image))}">'
            f"<figcaption><b>{name}{seed}</b>{lines}</figcaption></figure>"
        )
    about = "The judge's score, and in brackets the reward model's."
    if any(one.judged["diagnosis"] != one.judged["diagnosis"] for one in shown):
        about += f" {NO_LABELS[0].upper()}{NO_LABELS[1:]}."
    told = html.escape(" ".join(filter(None, (about, note))))
    return f'<p class="cxrl-note">{told}</p><div class="cxrl">{"".join(cells)}</div>'


def _line(task: str, judged: float, rewarded: float | None) -> str:
    reward = "" if rewarded is None else f" <small>({_score(rewarded)})</small>"
    return f"<span>{task}<b>{_score(judged)}{reward}</b></span>"


def _score(value: float) -> str:
    return "–" if value != value else f"{value:.2f}".replace("-", "−")


def build(playground: Playground, name: str, folder: Path) -> Any:
    """The page.

    Args:
        playground: What draws.
        name: Of the run.
        folder: Where files for download go.
    """
    gr = import_gradio()
    default = playground.default()

    def wish(*values: Any) -> Wish:
        report, seed, num, steps, guidance, ace, weights = values
        numbers = {"seed": int(seed or 0), "num_images": int(num), "num_steps": int(steps)}
        return Wish(
            str(report or ""), **numbers, guidance_scale=float(guidance), ace=bool(ace), weights=str(weights)
        )

    def show(*values: Any) -> tuple[str, list[str]]:
        asked = wish(*values)
        try:
            shown = playground.draw(asked)
            place = Path(tempfile.mkdtemp(dir=folder))
            files = playground.save(shown, asked, place)
            if importlib.util.find_spec("pydicom"):
                generated = [one for one in shown if one.side != "real"]
                files += playground.save(generated, asked, place, dicom=True)
        except CxrlError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return pictures(shown, playground.note(asked)), [str(path) for path in files]

    with gr.Blocks(title=f"cxrl: {name}", analytics_enabled=False) as page:
        gr.HTML(f"<h2>{html.escape(name)}</h2><p class='cxrl-banner'>{html.escape(SYNTHETIC)}</p>")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                report = gr.Textbox(default.report, label="Report", lines=3, elem_id="report")
                listed = gr.Dropdown(
                    list(playground.reports),
                    value=None,
                    label="or one of the held-out reports",
                    visible=bool(playground.reports),
                )
                go = gr.Button("Draw", variant="primary", elem_id="draw")
                with gr.Row():
                    seed = gr.Number(default.seed, label="Seed", precision=0, minimum=0, elem_id="seed")
                    num = gr.Slider(1, MOST_IMAGES, default.num_images, step=1, label="Images of each")
                weights = gr.Dropdown(list(playground.weights), value=default.weights, label="Weights")
                ace = gr.Checkbox(True, label="ACE, the learned tokens")
                with gr.Accordion("Sampler", open=False):
                    steps = gr.Slider(2, max(50, default.num_steps), default.num_steps, step=1, label="Steps")
                    guidance = gr.Slider(1.0, 10.0, default.guidance_scale, step=0.5, label="Guidance")
            with gr.Column(scale=3, min_width=300):
                out = gr.HTML(f"<p class='cxrl-note'>{START}</p>", elem_id="out")
                files = gr.Files(label="Files, marked as synthetic", elem_id="files")
        inputs = [report, seed, num, steps, guidance, ace, weights]
        listed.input(lambda text: text, listed, report)
        for start in (go.click, report.submit):
            start(show, inputs, [out, files], concurrency_limit=1, concurrency_id="draw")
    return page


def serve(playground: Playground, name: str, *, port: int, opened: bool) -> None:
    """Serve the page on this machine alone, until Ctrl-C.

    Args:
        playground: What draws.
        name: Of the run.
        port: 0 takes a free one.
        opened: Open a browser.

    Raises:
        CxrlError: The port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="cxrl-demo-") as scratch:
        page, address = start(playground, name, Path(scratch), port=port, opened=opened)
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def start(
    playground: Playground, name: str, folder: Path, *, port: int = 0, opened: bool = False
) -> tuple[Any, str]:
    """The page that is served, by threads, and its address. Arguments and errors as :func:`serve`;
    ``folder`` takes what is offered for download.
    """
    gr = import_gradio()
    page = build(playground, name, folder)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port or None,
            share=False,
            inbrowser=opened,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            run_history=False,  # it would keep reports in the browser
            allowed_paths=[str(folder)],
            theme=theme,
            css=STYLE,
            footer_links=[],
        )
    except OSError:  # whose advice is of options of Gradio's
        raise CxrlError(f"--port: {port} is taken, or not for you; choose another, or 0") from None
    page.app.middleware_stack = None  # built again, with one more
    page.app.add_middleware(_inside_only)
    return page, address


def _inside_only(gradio_app: Any) -> Any:
    """Takes out of pages what they would fetch from other machines; ASGI around Gradio's own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        held: list[Any] = []

        async def edited(message: Any) -> None:
            if message["type"] == "http.response.start" and _is_page(message["headers"]):
                held.append(message)
            elif message["type"] == "http.response.body" and held:
                held.append(message)
                if not message.get("more_body"):
                    await _send_edited(held, send)
            else:
                await send(message)

        await gradio_app(scope, receive, edited)

    return app


def _is_page(headers: Any) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)


async def _send_edited(held: list[Any], send: Any) -> None:
    start, *parts = held
    body = b"".join(part.get("body", b"") for part in parts)
    body = _OUTSIDE.sub("", body.decode()).encode()
    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
    await send(start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
