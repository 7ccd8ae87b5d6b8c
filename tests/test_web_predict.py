"""The page asks a model: over the API, with a real worker."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lorabench.errors import LorabenchError
from lorabench.predict.folder import write_model
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.web.access import Access
from lorabench.web.models import Models
from lorabench.web.settings import Settings
from lorabench.web.site import Site, make_site
from lorabench.zoo.export import export
from tests.leafy_zoo import CLASSES, leafy_zoo, model_of
from tests.web_site import TOKEN, Scripts, ended

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec).*")

FEW = 40


def models_and_adapters(place: Path) -> tuple[Path, Path]:
    """A folder with the model `animals` in it, and one of adapters: ten of its kind, and one of another base."""
    zoo, other = leafy_zoo(FEW), leafy_zoo(3, base=7)
    write_model(model_of(zoo, DeltaPCA(components=8, scope="all"), place / "cache"), place / "models" / "animals")
    export(zoo.rows(np.arange(10)), place / "adapters", "kohya")
    export(other.rows(np.arange(1)), place / "adapters" / "other", "kohya")
    return place / "models", place / "adapters"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("predict")
    models, adapters = models_and_adapters(place)
    made = make_site(Settings(place / "data", adapters, models=(models,)), Access(token=TOKEN))
    made.queue.start()
    yield made
    made.queue.stop()


def asked(site: Site, method: str, path: str, **how: Any) -> httpx.Response:
    return asyncio.run(Scripts(site).ask(method, path, **how))


@pytest.mark.slow
def test_a_model_is_asked_and_where_it_lies_is_not_told(site: Site) -> None:
    assert asked(site, "GET", "/api/models").json() == ["animals"]
    items = asked(site, "GET", "/api/adapters").json()
    wanted = {"command": "predict", "adapters": [one["id"] for one in items], "options": {"model": "animals"}}
    job = asked(site, "POST", "/api/jobs", json=wanted).json()
    assert job["shown"].startswith("lorabench predict animals ")
    assert ended(site, "me", job["id"])["state"] == "done"
    found = asked(site, "GET", f"/api/jobs/{job['id']}")
    assert str(site.settings.models[0]) not in found.text
    rows = {row["file"]: row for row in found.json()["answer"]["data"]["adapters"]}
    strangers = [name for name in rows if name.startswith("other/")]
    assert [rows[name]["answer"] for name in strangers] == ["unknown"]
    own = [row for name, row in rows.items() if name not in strangers]
    assert len(own) == 10
    assert all(set(row["categories"]) <= set(CLASSES) for row in own)
    assert sum(row["answer"] != "unknown" for row in own) >= 8
    assert found.json()["files"] == ["answers.csv"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "Choose one"), ({"model": "../animals"}, "there is no model"), ({"model": ["animals"]}, "Choose one")],
)
def test_a_model_is_called_by_its_name_alone(site: Site, options: dict[str, Any], said: str) -> None:
    items = asked(site, "GET", "/api/adapters").json()
    wanted = {"command": "predict", "adapters": [items[0]["id"]], "options": options}
    refused = asked(site, "POST", "/api/jobs", json=wanted)
    assert refused.status_code in (400, 404)
    assert said in refused.json()["error"]


def test_folders_of_models_are_looked_through_and_others_are_refused(tmp_path: Path) -> None:
    for name in ("a/one", "b/one", "c"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).touch()
    models = Models([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert len(models.all()) == 3
    assert models.find("one").path == tmp_path / "a" / "one"
    assert models.find("c").path == tmp_path / "c"
    assert {one.path for one in models.all()} == {tmp_path / "a" / "one", tmp_path / "b" / "one", tmp_path / "c"}
    with pytest.raises(LorabenchError, match=r"there is no model 'd' here\. There are .*c"):
        models.find("d")
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(LorabenchError, match="no model in it"):
            Models([tmp_path / "c", tmp_path / place])
