"""The model card as it is served: Markdown, a page for a browser, and the pictures that the artifact holds."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service import artifact
from service.errors import ArtifactRefused
from service.http import card
from tests import kit
from tests.kit import House, refused

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
HOSTILE = """# <script>alert(1)</script>

![<img src=x onerror=alert(1)>](card-rows.png)

![x](card-other.png)

![x](javascript:alert(1))

| <b>a</b> | `<i>` |
|---|---|
| \\| | **"x"** |

- <svg onload=alert(1)>

```
</code></pre><script>alert(1)</script>
```

[link](http://elsewhere) and <a href="http://elsewhere">it</a>
"""


@pytest.fixture(scope="module")
async def carded(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[House]:  # noqa: ARG001
    """Tiny with a card that means harm, and without one."""
    folder = tmp_path_factory.mktemp("models")
    added = {artifact.CARD: HOSTILE.encode(), "card-rows.png": PNG, "notes.png": PNG}
    artifact.rewrite(artifact.read(kit.copied("tiny", folder)), {}, added)
    bare(kit.copied("bare", folder))
    async with kit.open_house(kit.configured(folder)) as opened:
        yield opened


def bare(folder: Path) -> None:
    """Take an artifact's card away, as artifacts were before there were any."""
    found = artifact.read(folder)
    kept = {name: (folder / name).read_bytes() for name in found.manifest.files.keys() - found.card.keys()}
    artifact.write(folder, found.manifest.model_dump(exclude={"files"}), kept, replace=True)


@pytest.mark.parametrize("name", [path.name for path in sorted(kit.COMMITTED.iterdir())])
async def test_every_committed_model_has_a_card(house: House, name: str) -> None:
    """The catalogue says where; it is Markdown, and every picture that it names is there."""
    place = (await house.client.get(f"/v1/models/{name}")).json()["card"]
    assert place == f"/v1/models/{name}/versions/1/card"
    response = await house.client.get(place)
    assert response.headers["content-type"].startswith("text/markdown")
    assert response.text.startswith(f"# {name}, version 1\n")
    assert (await house.client.get(f"/v1/models/{name}/card")).text == response.text
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", response.text)
    manifest = (await house.client.get(f"/v1/models/{name}")).json()
    assert len(pictures) == (4 if len(manifest["event_shape"]) == 1 else 3)  # a table's columns have one of their own
    for picture in pictures:
        shown = await house.client.get(f"/v1/models/{name}/versions/1/{picture}")
        assert shown.headers["content-type"] == "image/png"
        assert shown.content.startswith(PNG[:8])


async def test_a_browser_gets_a_page(house: House) -> None:
    """With tables and pictures, and as Markdown where that is liked better."""
    browser = "text/html,application/xhtml+xml,*/*;q=0.8"
    response = await house.client.get("/v1/models/tiny/card", headers={"Accept": browser})
    assert response.headers["content-type"].startswith("text/html")
    assert "<h2>How it was trained</h2>" in response.text
    assert '<img src="card/card-scores.png"' in response.text
    assert "E_q[log p(x|z)]" in response.text
    refused(await house.client.get("/v1/models/tiny/card", headers={"Accept": "application/json"}), 406)


def test_a_table_without_a_head_has_no_empty_line() -> None:
    """Markdown can't leave a head out; a page can. One that says something is a head."""
    empty, headed = "| | |\n|---|---|\n| a | b |", "| x | y |\n|---|---|\n| a | b |"
    body = card.page(f"{empty}\n\n{headed}", (), "t").partition("<body>")[2]
    assert "<table><tr><td>a</td><td>b</td></tr></table>" in body
    assert "<table><tr><th>x</th><th>y</th></tr><tr><td>a</td><td>b</td></tr></table>" in body


async def test_a_card_that_means_harm_does_none(carded: House) -> None:
    """Everything is escaped; no picture but the artifact's own, no link, no script, and the browser is told so."""
    response = await carded.client.get("/v1/models/tiny/card", headers={"Accept": "text/html"})
    body = response.text.partition("<body>")[2]
    assert set(re.findall(r"<(\w+)", body)) == {
        "h1",
        "p",
        "img",
        "table",
        "tr",
        "td",
        "th",
        "code",
        "strong",
        "ul",
        "li",
        "pre",
    }
    assert re.findall(r"<img [^>]*>", body) == [
        '<img src="card/card-rows.png" alt="&lt;img src=x onerror=alert(1)&gt;">'
    ]
    assert 'href="' not in body
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    text = (await carded.client.get("/v1/models/tiny/card")).text
    assert "(card/card-rows.png)" in text
    assert "(card-other.png)" not in text


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("bare/card", "python -m training card"),
        ("bare/card/card-rows.png", "python -m training card"),
        ("tiny/card/manifest.json", "it has card-latents.png, card-rows.png"),
        ("tiny/card/elbo.onnx", "it has card-latents.png, card-rows.png"),
        ("tiny/card/notes.png", "it has card-latents.png, card-rows.png"),
        ("tiny/card/README.md", "ask for it without a name"),
        ("tiny/card/..%2fmanifest.json", ""),
        ("nobody/card", "nobody"),
    ],
)
async def test_what_is_no_part_of_the_card_is_a_404(carded: House, path: str, reason: str) -> None:
    """Files of the artifact that are no picture of the card, and models that have none, which are served as before."""
    assert reason in refused(await carded.client.get(f"/v1/models/{path}"), 404)["detail"]
    assert (await carded.client.get("/v1/models/bare")).json()["card"] is None


async def test_a_card_is_what_was_loaded(tmp_path: Path) -> None:
    """What becomes of the file afterwards changes nothing until the version is loaded again."""
    folder = kit.copied("tiny", tmp_path)
    async with kit.open_house(kit.configured(tmp_path)) as opened:
        before = (await opened.client.get("/v1/models/tiny/card")).text
        (folder / artifact.CARD).write_text("# another")
        assert (await opened.client.get("/v1/models/tiny/card")).text == before


def test_a_card_out_of_all_proportion_is_refused(tmp_path: Path) -> None:
    """It is held in memory, so it has to be small."""
    found = artifact.read(kit.copied("tiny", tmp_path))
    with pytest.raises(ArtifactRefused, match=r"README\.md and its pictures have 5,"):
        artifact.rewrite(found, {}, {artifact.CARD: bytes(5_000_000)})


def test_markdown_that_never_ends_is_quick() -> None:
    """No pattern goes back over what it has read again and again."""
    for part in ("|-", "`", "**", "![", "\\", "- ", "#", "\n\n"):
        card.page(part * 100_000, {}, "x")
