"""The files of torchxrayvision's release: names, sizes, digests. Nothing here downloads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

XRV_CACHE = Path("~/.torchxrayvision/models_data")
XRV_URL = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
XRV_LICENCE = (
    "torchxrayvision is Apache-2.0, the films it learned from have terms of their own; no credential"
)
PSPNET = "pspnet"


@dataclass(frozen=True)
class KnownFile:
    """A file of torchxrayvision's release.

    Attributes:
        file: Its name.
        size: Bytes; None where it is not known.
        sha256: "" where it is not known.
    """

    file: str
    size: int | None = None
    sha256: str = ""


_DENSENET = "densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
# The release publishes no digests. These are the ones that users of the files have recorded in public
# repositories; where none was found there is none here.
XRV_FILES = {
    "densenet121-res224-all": KnownFile(
        f"nih-pc-chex-mimic_ch-google-openi-kaggle-{_DENSENET}",
        28_382_008,
        "56524913dd16a906422e8d8b66a7a5c46be1d82eb7ac012d8103776f1aa68899",
    ),
    "densenet121-res224-chex": KnownFile(
        f"chex-{_DENSENET}", 28_381_998, "1a914ae802170187a4852e594708206c12468eeeefd66aa4e8e26141649d61a4"
    ),
    "densenet121-res224-mimic_ch": KnownFile(
        f"mimic_ch-{_DENSENET}",
        28_382_012,
        "23b13a04459684ffa41247d068207a7657b4e1b4dec2b02431f5026bd75b1189",
    ),
    "densenet121-res224-mimic_nb": KnownFile(f"mimic_nb-{_DENSENET}"),
    "densenet121-res224-nih": KnownFile(f"nih-{_DENSENET}"),
    "densenet121-res224-pc": KnownFile(f"pc-{_DENSENET}"),
    "densenet121-res224-rsna": KnownFile(f"kaggle-{_DENSENET}"),
    PSPNET: KnownFile(
        "pspnet_chestxray_best_model_4.pth",
        272_988_989,
        "019b167eac6b729fc1bb92bbbc185fc1730aaa65819f4e3fe718186cadc044fc",
    ),
}
"""Name that an option gives → file of the release."""
