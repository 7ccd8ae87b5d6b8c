"""For MkDocs: pages of the API list what is there, so that an addition needs no line here."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
LISTED = {"api/representations.md": "representation", "api/zoo.md": "dataset"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add what the configurations of a page's group lead to, one entry each."""
    group = LISTED.get(page.file.src_uri)
    if group is None:
        return markdown
    configs = (OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml")))
    targets = dict.fromkeys(config["_target_"] for config in configs if "_target_" in config)
    entries = [f"::: {target}\n    options:\n      heading_level: 3\n" for target in targets]
    return "\n".join([markdown, *entries])
