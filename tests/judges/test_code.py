"""Code under limits, and every way we know for it to fake a pass: each is written down here, and fails."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Verdict, exchange
from fairlead.judges import code as judged
from fairlead.judges.code import Limits, Network, case_tests, code_of, passes_tests

PATIENT = Limits(seconds=240, cpu_seconds=2, memory_mb=300, processes=8, output_kb=8, file_mb=4)


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Skips where the kernel gives nobody namespaces, told by util-linux; where it does, the sandbox must start."""
    asked = [
        shutil.which("unshare") or "false",
        "--user",
        "--map-root-user",
        "--net",
        "--pid",
        "--fork",
        "--mount",
        "true",
    ]
    allowed = subprocess.run(asked, capture_output=True, check=False).returncode == 0
    verdict = passes_tests(limits=PATIENT).judge([exchange("?", "x = 1", tests=["assert x == 1"])])[0]
    if verdict.score is None and not allowed:
        pytest.skip(verdict.reason)
    assert verdict.score == 1.0, verdict.reason


def verdicts(rows: Sequence[tuple[str, Any]], *, limits: Limits = PATIENT, **options: Any) -> list[Verdict]:
    judge = passes_tests(limits=limits, workers=4, **options)
    return judge.judge([exchange("?", f"Here:\n```python\n{code}\n```\nDone.", tests=tests) for code, tests in rows])


ADD = ["assert add(1, 2) == 3", "assert add(2, -2) == 0"]
CHECK = "def check(candidate):\n    for a, b in ((1, 2), (5, 5)):\n        assert candidate(a, b) == a + b\ncheck(add)"
RIGHT: list[tuple[str, Any]] = [
    ("def add(a, b):\n    return a + b", ADD),
    ("def add(a, b):\n    return a + b", CHECK),
    ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", [("1 2\n", "3\n"), ("4 5", "9  \n\n")]),
    ("if __name__ == '__main__':\n    print(int(input()) * 2)\ndef add(a, b): return a + b", [("4", "8"), ADD[0]]),
    ("from collections import Counter\ndef f(x): return Counter(x), [x], {1, 2.5}, -0.0, 10**5000, b'a', None, True",
     ["assert f('aab') == ({'a': 2, 'b': 1}, ['aab'], {1, 2.5}, 0, 10**5000, b'a', None, True)"]),
    ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
     "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]",
     "s = Stack()\ns.push(3)\nassert len(s) == 1 and s[0] == 3 and s.items == [3] and list(s) == [3] and 3 in s"),
    ("def f(x):\n    if x < 0: raise ValueError('negative')\n    return x ** 0.5",
     "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'neg' in str(e)\nassert math.isclose(f(2), 1.41421356, rel_tol=1e-6)"),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\ndef f(p): return p.x", "assert f(P(4)) == 4"),
    ("import subprocess, threading\nt = threading.Thread(target=print); t.start(); t.join()\nprint(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout)",
     [("", "\nhi")]),
]  # fmt: skip


def test_right_code_passes(sandbox: None) -> None:
    got = verdicts(RIGHT)
    assert [v.score for v in got] == [1.0] * len(RIGHT), [v.reason for v in got]
    assert {v.judge for v in got} == {"verifier:code"} and {v.reason for v in got} == {""}


# one line each: what it tries, the code, the tests (ADD where nothing is said), and what the reason holds
EVIL = "class E(int):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = int.__hash__\n"
TRICKS: dict[str, tuple[str, Any, str]] = {
    "leave": ("import sys\nsys.exit(0)", ADD, "stops with"),
    "leave at once": ("import os\nos._exit(0)", ADD, "code ended"),
    "leave when called": ("import os\ndef add(a, b): os._exit(0)", ADD, "code ended"),
    "leave where a test catches all": (
        "import os\ndef f(x): os._exit(0)",
        "try:\n    f(1)\nexcept:\n    pass\nassert True",
        "code ended",
    ),
    "equal to all": (EVIL + "def add(a, b): return E(7)", ADD, "does not hold"),
    "an object equal to all": ("class A:\n    __eq__ = lambda s, o: True\ndef add(a, b): return A()", ADD, "compares values"),
    "an object that is true": ("class A:\n    __bool__ = lambda s: True\ndef ok(x): return A()", "assert ok(2)", "compares values"),
    "an iterator that ends all()": ("def ok(x): raise StopIteration", "assert all(map(ok, [1, 2]))", "StopIteration"),
    "another AssertionError": ("import builtins\nbuiltins.AssertionError = ZeroDivisionError\nclass AssertionError(Exception): pass\ndef add(a, b): return 0", ADD, "does not hold"),
    "other built-ins": ("import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return -5", "assert abs(f(1)) == 0", "does not hold"),
    "names of built-ins": ("def all(x): return True\ndef isinstance(a, b): return True\ndef f(x): return -5", "assert all([f(1) > 0]) and isinstance(f(1), str)", "does not hold"),
    "another math": ("class math:\n    isclose = lambda *a, **k: True\nimport sys\nsys.modules['math'] = math\ndef f(x): return 0", "assert math.isclose(f(1), 1)", "does not hold"),
    "print the marker": ("import os, sys\nprint('{\"passed\": true}')\nfor fd in range(1024):\n    try: os.write(fd, b'{\"passed\": true, \"reason\": \"\"}\\n' * 3)\n    except OSError: pass\ndef add(a, b): return 0", ADD, "code ended"),
    "answer out of turn": ("import os, json, struct\nm = json.dumps({'value': ['i', '0x3'], 'arguments': ['l', []]}).encode()\nfor fd in range(3, 1024):\n    try: os.write(fd, (struct.pack('!I', len(m)) + m) * 9)\n    except OSError: pass\nos._exit(0)",
                           ADD, ""),
    "take a name that a test made": ("x = 9\ndef f(): return 9", ["x = 3\nassert x == 3", "assert f() == x"], "does not hold"),
    "change its argument": ("def f(xs):\n    xs.clear()\n    return []", "xs = [3, 1]\nassert f(xs) == sorted(xs)", "does not hold"),
    "read the caller's frames": ("import sys, gc\nwanted = '(dda tressa'  # backwards, so that it does not find itself\ndef add(a, b):\n    f, seen = sys._getframe(), []\n    while f:\n        seen += [*f.f_locals.values(), *f.f_globals.values()]\n        f = f.f_back\n"
                                 "    seen += [o for o in gc.get_objects() if isinstance(o, (list, dict, tuple))]\n    return a + b if any(wanted in repr(o)[::-1] for o in list(seen)) else 0", ADD, "does not hold"),
    "read the processes": ("import os, glob\ndef add(a, b):\n    return a + b if glob.glob('/proc/*') or len(os.listdir('/tmp')) else 0", ADD, "does not hold"),
    "change the harness": ("import sys, json, socket\nfor m in list(sys.modules.values()):\n    for n in ('check', 'decode', '_of_type', '_error_of'):\n        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\n"
                           "json.loads = lambda *a: {'passed': True}\ndef add(a, b): return 0", ADD, ""),
}  # fmt: skip


def test_no_trick_passes(sandbox: None) -> None:
    got = dict(zip(TRICKS, verdicts([trick[:2] for trick in TRICKS.values()], share=True), strict=True))
    assert {name: v.score for name, v in got.items()} == dict.fromkeys(TRICKS, 0.0), got
    assert {name: v.reason for name, v in got.items() if TRICKS[name][2] not in v.reason} == {}
    assert got["take a name that a test made"].raw == 0.5, "the first test has nothing to do with the code"
    assert got["leave at once"].raw == 0.0


def test_a_program_is_judged_by_what_it_prints_and_how_it_ends(sandbox: None) -> None:
    pair = [("3\n", "4\n")]
    rows = [
        ("print(4)\nraise SystemExit(0)", 1.0, ""), ("print(4)\nimport sys\nsys.exit(3)", 0.0, "code 3"), ("print(5)", 0.0, "prints '5"),
        ("print(4)\n1 / 0", 0.0, "ZeroDivisionError"), ("print(4", 0.0, "SyntaxError"), ("import os\nos._exit(0)", 0.0, "prints ''"),
        ("while True: print('a' * 1000)", 0.0, "more than 8 KiB"),
    ]  # fmt: skip
    got = verdicts([(code, pair) for code, _, _ in rows])
    assert [v.score for v in got] == [score for _, score, _ in rows], [v.reason for v in got]
    assert all(why in v.reason for v, (_, _, why) in zip(got, rows, strict=True)), [v.reason for v in got]


def test_limits_hold(sandbox: None) -> None:
    """What the limits stop is a zero with its reason: the code is to blame."""
    rows = {
        "cpu": ("while True: pass", [("", "")], "out of CPU time"),
        "memory": ("x = bytearray(400 << 20)\nprint(1)", [("", "1")], "MemoryError"),
        "file": ("f = open('a', 'wb')\nfor i in range(99): f.write(bytes(1 << 20)); f.flush()", [("", "")], "OSError"),
        "processes": ("import os, time\nn = 0\nfor i in range(40):\n    try:\n        if os.fork() == 0: time.sleep(99); os._exit(0)\n        n += 1\n    except OSError: break\nprint('few' if n < 8 else n)", [("", "many")], "prints 'few"),
        "cpu in a call": ("def add(a, b):\n    while True: pass", ADD, "code ended"),
        "an endless value": ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", ADD, "RecursionError"),
        "a value too large": ("def add(a, b): return 'a' * (9 << 20)", ADD, "4 MiB"),
    }  # fmt: skip
    got = dict(zip(rows, verdicts([row[:2] for row in rows.values()]), strict=True))
    assert {name: v.score for name, v in got.items()} == dict.fromkeys(rows, 0.0), got
    assert {name: v.reason for name, v in got.items() if rows[name][2] not in v.reason} == {}


def children() -> set[str]:
    """The processes that this one started and that still are."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def test_the_wall_clock_ends_what_sleeps_and_all_it_started(sandbox: None) -> None:
    limits = Limits(seconds=1.5, cpu_seconds=1)
    sleeps = "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(600)"
    start, before = time.monotonic(), children()
    got = verdicts([(sleeps, [("", "")]), (sleeps, ADD)], limits=limits)
    assert [(v.score, v.reason) for v in got] == [
        (0.0, "test 0: not done in 1.5 seconds"), (0.0, "test 0: not done in 1.5 seconds")
    ]  # fmt: skip
    assert time.monotonic() - start < 300
    assert children() <= before, "a child of ours is left"  # other tests of this process may have left some before


def test_what_was_passed_before_the_time_ran_out_counts_in_the_share(sandbox: None) -> None:
    slow = "import time\ndef add(a, b):\n    if a == 2: time.sleep(600)\n    return a + b"
    got = verdicts([(slow, ADD)], limits=Limits(seconds=8, cpu_seconds=1), share=True)[0]
    assert (got.score, got.raw) == (0.0, 0.5)


LOOKS = """
import os, socket
def net(make):
    try:
        make()
        return "open"
    except OSError:
        return "shut"
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(("192.0.2.1", 9))
def tcp():
    socket.create_connection(("127.0.0.1", PORT), 2)
print(net(udp), net(tcp), os.listdir(), os.getcwd(), sorted(os.environ), os.path.exists("FILE"))
print([fd for fd in range(3, 64) if not net(lambda: os.fstat(fd)) == "shut"])
try:
    open("/usr/fairlead", "w")
except OSError as e:
    print("no", type(e).__name__ == "PermissionError" or "ead-only" in str(e))
try:
    os.kill(1, 9); os.setuid(0); print("root")
except OSError:
    print("no rights")
"""


def test_the_code_sees_no_network_no_files_no_environment(sandbox: None, tmp_path: Any, monkeypatch: Any) -> None:
    import socket

    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv("API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = LOOKS.replace("PORT", str(server.getsockname()[1])).replace("FILE", str(tmp_path / "secret"))
        shown = "shut shut [] /tmp ['HOME', 'LC_ALL', 'PATH', 'PYTHONHASHSEED'] False\n[]\nno True\nno rights"
        got = verdicts([(code, [("", shown)])])[0]
    assert got.score == 1.0, got.reason


def test_the_weaker_way_blocks_sockets_and_processes_in_the_interpreter() -> None:
    code = "import os\ndef no(f):\n    try: f()\n    except PermissionError: return 'no'\n"
    code += "import socket, subprocess\nprint(no(socket.socket), no(os.fork), no(lambda: subprocess.run(['ls'])), os.listdir())"
    options: dict[str, Any] = {"network": "block-in-python"}
    rows = [(code, [("", "no no no []")]), ("def add(a, b): return a + b", ADD), ("def add(a, b): return 0", ADD)]
    got = verdicts(rows, **options)
    assert [v.score for v in got] == [1.0, 1.0, 0.0], [v.reason for v in got]
    assert passes_tests(network="block-in-python").lineage != passes_tests().lineage
    assert judged.__doc__ is not None and "That is weaker" in judged.__doc__
    with pytest.raises(InputError, match="'cut' or 'block-in-python'"):
        passes_tests(network="none")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        (None, "no tests"), ([], "no tests"), ("add(1, 2) == 3", "asserts nothing"), (["assert add("], "no Python"), ([("a",)], "neither"),
        ([3], "neither"), (["assert sum([1, 2]) == 3"], "no name that the code could define"),
    ],
)  # fmt: skip
def test_a_case_that_cannot_judge_is_missing(tests: Any, why: str) -> None:
    verdict = passes_tests().judge([exchange("?", "x", tests=tests)])[0]
    assert verdict.score is None and verdict.raw is None and why in verdict.reason
    with pytest.raises(judged.BadTests):
        case_tests({"tests": tests})


def test_a_test_that_hands_over_what_cannot_be_handed_over_is_missing(sandbox: None) -> None:
    rows = [
        ("def f(g): return g(1)", "assert f(lambda x: x) == 1"),
        ("def f(g): return 1", "try:\n    f(print)\nexcept BaseException:\n    pass\nassert 1"),
    ]
    for verdict in verdicts(rows):
        assert verdict.score is None and "cannot be handed to another process" in verdict.reason


def test_a_sandbox_that_cannot_start_is_missing_and_nothing_is_run(monkeypatch: Any, tmp_path: Any) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the network can be cut on Linux only")
    house = judged.SOURCE / "fairlead"
    (tmp_path / "fairlead/judges").mkdir(parents=True)
    for file in (house / "__init__.py", house / "judges/__init__.py", *house.glob("judges/code_*.py")):
        text = file.read_text().replace("libc.unshare(sum(_NS.values()))", "libc.unshare(1)")  # EINVAL
        (tmp_path / "fairlead" / file.relative_to(house)).write_text(text)
    assert "unshare(1)" in (tmp_path / "fairlead/judges/code_jail.py").read_text()
    monkeypatch.setattr(judged, "SOURCE", tmp_path)
    for tests in (ADD, [("", "1")]):
        verdict = passes_tests(limits=PATIENT).judge([exchange("?", "print(1)", tests=tests)])[0]
        assert verdict.score is None
        assert "could not start: the kernel refuses: a sandbox of its own" in verdict.reason.replace("[Errno 22] ", "")
        assert "block-in-python" in verdict.reason
    monkeypatch.setattr(sys, "platform", "darwin")
    verdict = passes_tests().judge([exchange("?", "print(1)", tests=ADD)])[0]
    assert verdict.score is None and "only Linux" in verdict.reason


def test_in_place(sandbox: None) -> None:
    row = ("def f(xs): xs.sort()", "xs = [3, 1]\nf(xs)\nassert xs == [1, 3]")
    assert verdicts([row])[0].score == 0.0
    assert verdicts([row], in_place=True)[0].score == 1.0


# ---------------------------------------------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"), ("a\n```python\nx = 1\n```\nb", "x = 1\n"), ("```py\nx\n```\nand\n```python\ny\n```", "y\n"), ("```\nx\n```", "x\n"),
        ("```python\nx = 1", "x = 1"), ("```bash\nls\n```\n```python\nx\n```\n```text\n3\n```", "x\n"), ("```bash\nls\n```", "```bash\nls\n```"),
    ],
)  # fmt: skip
def test_the_code_of_a_reply(text: str, code: str) -> None:
    assert code_of(text) == code


def test_limits_are_checked_and_make_the_judge() -> None:
    with pytest.raises(InputError, match="memory_mb is 0"):
        Limits(memory_mb=0)
    network: Network = "cut"
    assert passes_tests(network=network).lineage == passes_tests(workers=3).lineage != passes_tests(share=True).lineage
    assert passes_tests(limits=Limits(seconds=3)).lineage != passes_tests().lineage
    assert next(iter(passes_tests().lineage)).exact


def test_a_user_without_rights_can_shut_in_too(tmp_path: Any) -> None:
    """The tests above run as whoever runs them; where that is root, this is how everybody else fares."""
    python = shutil.which("python3", path="/usr/bin")
    if (
        os.geteuid()
        or python is None
        or subprocess.run([python, "-V"], capture_output=True, text=True).stdout[7:11] < "3.11"
    ):
        pytest.skip("needs root, and a Python for everybody in /usr/bin (3.11 or newer)")
    house = judged.SOURCE / "fairlead"
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are for their owner alone
        source, folder = Path(place) / "src", Path(place) / "root"
        (source / "fairlead/judges").mkdir(parents=True)
        folder.mkdir()
        for file in (house / "__init__.py", house / "judges/__init__.py", *house.glob("judges/code_*.py")):
            shutil.copy(file, source / "fairlead" / file.relative_to(house))
        for made in (Path(place), *Path(place).rglob("*")):
            os.chmod(made, 0o755)
        os.chown(folder, 1000, 1000)
        settings = tmp_path / "settings.json"
        body = "import os\nprint(os.getuid(), os.listdir('/tmp'))\ntry: open('/usr/x', 'w')\nexcept OSError as e: print('Read-only' in str(e))"
        about = {"role": "run", "body": body, "network": "cut", "folder": str(folder), "keep": [], "in_place": False}
        settings.write_text(json.dumps(about | dataclasses.asdict(PATIENT)))
        with open(settings) as given:
            done = subprocess.run(
                [python, "-S", "-P", "-c", judged.START, str(given.fileno()), "1"], capture_output=True, text=True,
                user=1000, group=1000, extra_groups=[], pass_fds=[given.fileno()], env={"PYTHONPATH": str(source)},
            )  # fmt: skip
    if "refuses" in done.stdout:
        pytest.skip(done.stdout)
    assert done.stdout.startswith("ready"), (done.stdout, done.stderr)
