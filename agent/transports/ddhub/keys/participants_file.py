"""The file in which an operator writes the keys of participants himself: for closed groups and for tests.

A JSON object: ``{"did:ethr:ewc:0x...": {"signature": "0x04...", "encryption": "-----BEGIN RSA PUBLIC KEY-----..."}}``.
One of the two keys may be left out. All that is wrong is found at once, each with its line. Pure.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent.errors import AgentError, Problem, Verdict
from agent.evidence.did import DidKey
from agent.printable import printable
from agent.transports.ddhub.keys.network import participant
from agent.transports.ddhub.keys.participant import ENCRYPTION_TAG, SIGNATURE_TAG, ParticipantKeys, judged

LARGEST = 4 << 20  # bytes of a file
_SHOWN = 20  # problems in a message: who writes one thing wrong writes it wrong a thousand times
_TAGS = {"signature": SIGNATURE_TAG, "encryption": ENCRYPTION_TAG}
_MEMBERS = {tag: name for name, tag in _TAGS.items()}


class ParticipantsFileError(AgentError):
    """The file cannot be used; ``problems`` holds all that is wrong with it."""

    verdict = Verdict.RETRY

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = [str(problem) for problem in problems[:_SHOWN]]
        if more := len(problems) - len(lines):
            lines.append(f"and {more} more")
        super().__init__("\n".join(lines), hint="correct the file; it is read again at once")
        self.problems = tuple(problems)


class _Twice(dict[str, Any]):
    """A JSON object that remembers which names it had twice; ``dict`` would keep the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.twice = {name for name, count in counts.items() if count > 1}


def parse(content: bytes, *, file: str) -> Mapping[DidKey, ParticipantKeys]:
    """The keys by DID; ``file``: what messages call it. Raises ParticipantsFileError."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise _only(file, 0, "this is not text", "write it as UTF-8") from None
    try:
        table = json.loads(text, object_pairs_hook=_Twice)
    except json.JSONDecodeError as error:
        raise _only(file, error.lineno, f"this is no JSON: {error.msg.lower()}", "correct it there") from None
    except RecursionError:
        raise _only(file, 0, "this is no JSON of ours: it is too deep", "write one object per DID") from None
    if not isinstance(table, _Twice):
        raise _only(file, 1, "this is no JSON object", 'write it like {"did:ethr:...": {"signature": "0x04..."}}')
    lines = _Lines(text)
    problems: list[Problem] = []
    found: dict[DidKey, ParticipantKeys] = {}
    for did, entry in table.items():

        def wrong(what: str, remedy: str, key: str = did) -> None:
            problems.append(Problem(file, lines.of(key), *map(printable, (key[:80], what, remedy))))

        try:
            who = participant(did)
        except ValueError:
            wrong("this is no DID of a participant", "write did:ethr:ewc:0x... or did:ethr:volta:0x...")
            continue
        key = (hex(who.network.chain_id), who.address)
        if did in table.twice or key in found:
            wrong("the DID is there twice", "leave one of the two out")
            continue
        found[key] = _keys(entry, wrong)
    if problems:
        raise ParticipantsFileError(problems)
    return found


def _keys(entry: Any, wrong: Callable[[str, str], None]) -> ParticipantKeys:
    texts = {}
    if not isinstance(entry, _Twice) or not entry:
        wrong("expected an object with its keys", 'write {"signature": "0x04...", "encryption": "-----BEGIN ..."}')
        entry = _Twice([])
    for name, value in entry.items():
        if name not in _TAGS:
            wrong(f'"{name[:40]}" is no key', "write signature and encryption")
        elif name in entry.twice:
            wrong(f"{name} is there twice", "leave one of the two out")
        elif not isinstance(value, str):
            wrong(f"{name} is no text", "write the key in quotes; a line end within it is \\n")
        else:
            texts[_TAGS[name]] = value
    keys = judged(texts)
    for tag, value in ((SIGNATURE_TAG, keys.signature), (ENCRYPTION_TAG, keys.encryption)):
        if tag in texts and value is None:
            what = next(remark.what for remark in keys.remarks if remark.tag == tag)
            wrong(f"{_MEMBERS[tag]}: {what}", "copy it from the DID document of the participant")
    return ParticipantKeys(keys.signature, keys.encryption)


class _Lines:
    """Where the members of the outer object stand, which the JSON parser does not tell."""

    def __init__(self, text: str) -> None:
        self._text = text

    def of(self, name: str) -> int:
        """From 1; 0 if the name is written in another way (escapes)."""
        at = self._text.find(json.dumps(name, ensure_ascii=False))
        return 0 if at < 0 else self._text.count("\n", 0, at) + 1


def _only(file: str, line: int, what: str, remedy: str) -> ParticipantsFileError:
    return ParticipantsFileError([Problem(file, line, "", what, remedy)])
