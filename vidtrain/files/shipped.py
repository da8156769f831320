"""Files beside the code: at the top of a checkout, or within the package where it was installed as a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds conf/ within the package; in a checkout it lies beside it
IN_CHECKOUT = not (PACKAGE / "conf").is_dir()
ROOT = PACKAGE.parent if IN_CHECKOUT else PACKAGE
CONF = ROOT / "conf"


def install_hint(extra: str) -> str:
    """What to type for the packages of an extra. Never a bare name: the package index has another project of that
    name."""
    if IN_CHECKOUT:
        return f"uv sync --extra {extra}"
    return f"pip install 'WHEEL[{extra}]', WHEEL being the path of the file that vidtrain was installed from"
