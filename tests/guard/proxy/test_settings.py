"""guard.yaml and the tenant file: what they hold, what is refused and on which line."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.guard.proxy.settings import Settings, allowed, read_settings
from fairlead.guard.proxy.tenants import KEY, Pace, draw_key, read_tenants, tenant_of

DIGEST = "sha256:" + "0" * 64


def _written(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text)
    return path


def test_without_a_file_nothing_passes_unread() -> None:
    allow = allowed(read_settings(None))
    assert (allow.fields, allow.images, allow.opaque, allow.top_logprobs) == (frozenset(), False, False, False)


def test_switches_reach_the_wire(tmp_path: Path) -> None:
    path = _written(tmp_path, "allow: [previous_response_id]\nimages: pass\nopaque: pass\ntop_logprobs: pass\n")
    allow = allowed(read_settings(path))
    assert (allow.fields, allow.images, allow.opaque, allow.top_logprobs) == (
        frozenset({"previous_response_id"}),
        True,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rounds: 3\nlimits:\n  boddy: 3\n", "file.yaml:3: limits: unknown key 'boddy'. Did you mean 'body'?"),
        ("images: maybe\n", "file.yaml:1: images: 'maybe' is not one of refuse, pass"),
        ("limits:\n  body: '10'\n", "file.yaml:2: limits: body: must be a whole number"),
        ("limits:\n  idle: 0\n", "greater than 0"),
        ("limits:\n  total: 10\n", "no reply could wait that long"),
        ("limits:\n  in_flight: 5000\n", "would queue for a connection"),
        ("checks:\n  critic:\n    deadline: -1\n", "file.yaml:3"),
        ("audit:\n  file: a.db\n  strict: perhaps\n", "file.yaml:3: audit: strict: must be true or false"),
        ("audit:\n  heads_url: here\n", "file.yaml:2: audit: heads_url: 'here' is no http or https address"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match="file.yaml") as error:
        read_settings(_written(tmp_path, text))
    assert told in str(error.value)


def test_the_page_shows_the_defaults() -> None:
    from fairlead.constitution.yaml import parse_yaml, validate

    page = (Path(__file__).resolve().parents[3] / "docs" / "guard.md").read_text()
    shown = page.split("## Settings", 1)[1].split("```yaml", 1)[1].split("```", 1)[0]
    assert validate(parse_yaml(shown, "docs/guard.md"), Settings) == Settings()


def test_rules_are_not_served_without_re2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library would read them too, and could be kept busy for hours by who writes the text."""
    pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
    from fairlead.guard.checks import rules
    from fairlead.guard.proxy.setup import Keep, Options, read_setup

    (tmp_path / "rules.yaml").write_text("checks: {rules: {be-kind: [arsenic]}}\n")
    (tmp_path / "c.yaml").write_text(
        "name: c\nprinciples:\n  - {id: be-kind, dimension: voice, severity: 1, text: Be kind., guard: {on_violation: refuse}}\n"
    )
    options = Options(str(tmp_path / "c.yaml"), "http://127.0.0.1:9", policy=tmp_path / "rules.yaml")
    monkeypatch.setattr(rules, "re2", None)
    with pytest.raises(MissingResource, match="checks.rules need google-re2"):
        read_setup(options, Keep())
    assert read_setup(replace(options, policy=None), Keep()).all()


def test_texts_go_to_no_vendor_that_the_constitution_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic at a provider's reads what users say. The model's own server does so anyway, and so does what is ours."""
    pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
    pytest.importorskip("openai", reason="openai is missing: pip install 'fairlead[dev]'")
    from fairlead.guard.proxy.setup import Keep, Options, read_setup
    from fairlead.guard.proxy.startup import told

    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    written = "name: c\nprinciples:\n  - {id: be-kind, dimension: voice, severity: 1, text: Be kind., guard: {on_violation: refuse}}\n"
    (tmp_path / "closed.yaml").write_text(written)
    (tmp_path / "open.yaml").write_text(written + "vendors: [critic.example]\n")
    far, near, own = (
        f"openai/x@{url}" for url in ("https://critic.example/v1", "http://10.1.2.3/v1", "https://model.example")
    )
    options = Options(str(tmp_path / "closed.yaml"), "https://model.example/v1")
    with pytest.raises(InputError, match=r"to critic\.example, and the constitution .*vendors: \[critic\.example\]"):
        read_setup(replace(options, critic=far), Keep())
    for name, critic in (("closed", near), ("closed", own), ("open", far)):
        read = read_setup(replace(options, constitution=str(tmp_path / f"{name}.yaml"), critic=critic), Keep())
        assert ("texts go to critic.example" in "\n".join(told(read))) == (name == "open")
    managed = replace(options, upstream=None, model="openai/y@https://critic.example/v1", critic=far)
    assert "texts go to critic.example" in "\n".join(told(read_setup(managed, Keep())))
    with pytest.raises(InputError, match=r"to critic\.example"):
        read_setup(replace(managed, model="openai/y@https://model.example/v1"), Keep())


# ------------------------------------------------------------------------------------------------ tenants


def test_a_drawn_key_opens_its_tenant_and_no_other(tmp_path: Path) -> None:
    (one, one_digest), (two, two_digest) = draw_key(), draw_key()
    assert KEY.fullmatch(one) and one not in one_digest
    path = _written(
        tmp_path, f'tenants:\n  - name: shop\n    keys: ["{one_digest}"]\n  - name: bank\n    keys: ["{two_digest}"]\n'
    )
    by_key = read_tenants(path).by_key()
    assert [tenant_of(key, by_key).name for key in (one, two)] == ["shop", "bank"]  # type: ignore[union-attr]
    assert tenant_of(one[:-1] + "A", by_key) is None or one.endswith("A")
    assert tenant_of("", by_key) is None


def test_a_wrong_key_is_told_once_and_not_as_a_short_list_too(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_tenants(_written(tmp_path, "tenants:\n  - name: shop\n    keys: [secret]\n"))
    assert len(str(error.value).splitlines()) == 1


def test_a_key_that_somebody_made_up_is_nobodys(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"hunter2").hexdigest()
    by_key = read_tenants(_written(tmp_path, f'tenants:\n  - name: shop\n    keys: ["sha256:{digest}"]\n')).by_key()
    assert tenant_of("hunter2", by_key) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tenants: []\n", "file.yaml:1"),
        ("tenants:\n  - name: shop\n    keys: [secret]\n", "draw one with `fairlead guard key`"),
        (f'tenants:\n  - name: a\n    keys: ["{DIGEST}"]\n  - name: a\n    keys: ["{DIGEST[:-1]}1"]\n', "'a' is given twice"),
        (f'tenants:\n  - name: a\n    keys: ["{DIGEST}"]\n  - name: b\n    keys: ["{DIGEST}"]\n', "is given twice"),
        (f'tenants:\n  - name: a\n    keys: ["{DIGEST}"]\n    budget: much\n', "file.yaml:4: tenant 'a': budget"),
        (f'tenants:\n  - name: a\n    keys: ["{DIGEST}"]\n    upstream: {{url: "http://x", key: "sk-1"}}\n', "file.yaml:4"),
    ],
)  # fmt: skip
def test_a_wrong_tenant_file_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        read_tenants(_written(tmp_path, text))
    assert told in str(error.value)


def test_constitutions_are_named_from_the_tenant_file(tmp_path: Path) -> None:
    text = f'tenants:\n  - name: a\n    keys: ["{DIGEST}"]\n    constitution: brand.yaml\n'
    assert read_tenants(_written(tmp_path, text)).tenants[0].constitution == str(tmp_path / "brand.yaml")
    text = f'tenants:\n  - name: a\n    keys: ["{DIGEST}"]\n    constitution: hhh\n'
    assert read_tenants(_written(tmp_path, text)).tenants[0].constitution == "hhh"


def test_a_rate_holds_over_any_minute_but_for_its_burst() -> None:
    """60 a minute: a burst of 10, then one a second; counted over 10 minutes of asking twenty times a second."""
    pace = Pace(60.0)
    taken = [now for now in (n / 20 for n in range(12_000)) if pace.take(now) == 0.0]
    assert 600 <= len(taken) <= 611
    assert sum(now < 1 for now in taken) <= 11


def test_workers_share_a_rate() -> None:
    alone, half = Pace(600.0), Pace(600.0, share=2)
    times = [n / 100 for n in range(6_000)]
    assert sum(half.take(t) == 0.0 for t in times) < 0.6 * sum(alone.take(t) == 0.0 for t in times)


def test_a_rate_below_one_a_minute_can_still_be_used() -> None:
    pace = Pace(1.0)
    assert pace.take(1000.0) == 0.0
    assert 59 < pace.take(1000.5) < 60.1
    assert pace.take(1060.5) == 0.0
