"""What outlives a process that receives from the Data Hub."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.transports.ddhub.answers import ReceivedKey, ReceivedMessage
from agent.transports.ddhub.receiving.delivery import Why
from agent.transports.ddhub.receiving.mailbox import Mailbox, mailbox
from agent.transports.ddhub.receiving.mailbox_file import MailboxError, MailboxFile
from tests.runs import DID

ALICE, CAROL = "did:ethr:volta:0xA", "did:ethr:volta:0xC"
NAME = "mailbox.db"
TOPIC = "62545547fe37f174d7715ff3"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Mailbox]:
    with mailbox(tmp_path / NAME, did=DID) as box:
        yield box


def key(number: int, *, sender: str = ALICE, of: str = "g", nanos: int = 1, wrapped: str | None = None) -> ReceivedKey:
    return ReceivedKey(f"k{number}", sender, of, wrapped or f"w{number}", nanos)


def message(number: int, *, sender: str = ALICE, nanos: int = 1, text: str = "00:11") -> ReceivedMessage:
    return ReceivedMessage(f"m{number}", TOPIC, "1.0.0", text, True, sender, "0x", nanos, f"g{number}", "", False)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)


def test_all_of_it_is_there_again(tmp_path: Path) -> None:
    with mailbox(tmp_path / NAME, did=DID) as box:
        assert box.was_closed
        client_id, keys = box.client_id(TOPIC, [ALICE]), box.key_client_id()
        box.put_keys([key(1)], listened=[ALICE])
        box.park([(message(1), Why.KEY, 0)], client_id=client_id)
        box.finish([("m2", ALICE, "g2", 7)], client_id=client_id)
    with mailbox(tmp_path / NAME, did=DID) as box:
        assert box.was_closed
        assert (box.client_id(TOPIC, [ALICE]), box.key_client_id()) == (client_id, keys)
        assert box.wrapped(ALICE, "g") == ["w1"]
        assert box.parked_message("m1") == message(1)
        assert box.known(["m1", "m2", "m3"]) == {"m1", "m2"}
        assert box.owed(client_id) == ["m1", "m2"]
        box.settle(["m1", "m2"], client_id=client_id)
        assert box.owed(client_id) == []


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "one"
    with mailbox(folder / NAME, did=DID) as box:
        box.put_keys([key(1)], listened=[])
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}
    assert {"mailbox.db", "mailbox.db.lock"} <= modes.keys()


def test_client_ids_are_what_the_broker_takes_and_deletes(box: Mailbox) -> None:
    for client_id in (box.client_id(TOPIC, [ALICE]), box.key_client_id()):
        assert re.fullmatch("[a-zA-Z0-9:]{1,200}", client_id)
        assert client_id.startswith(box.prefix)


def test_client_ids_follow_from_topic_and_senders_only(box: Mailbox) -> None:
    found = {}
    for senders in ([ALICE, CAROL], [CAROL, ALICE], [CAROL, ALICE, CAROL], [ALICE], []):
        found[tuple(senders)] = box.client_id(TOPIC, senders)
    assert len({*found.values()}) == 3
    assert box.client_id("a0", [ALICE]) not in found.values()


def test_another_mailbox_has_other_client_ids(tmp_path: Path, box: Mailbox) -> None:
    with mailbox(tmp_path / "other" / NAME, did=DID) as other:
        assert other.client_id(TOPIC, [ALICE]) != box.client_id(TOPIC, [ALICE])
        assert other.key_client_id() != box.key_client_id()


def test_keys_are_asked_for_again_only_if_some_may_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mailbox(tmp_path / NAME, did=DID) as box:
        first = box.key_client_id()
        assert not box.doubts_keys()
        box.doubt_keys()
        assert box.doubts_keys()
        box.reread_keys()
        assert box.key_client_id() != first
        assert not box.doubts_keys(), "once"
        with monkeypatch.context() as crashing:
            crashing.setattr(MailboxFile, "close", lambda self: self._db.close())
            box._file.close()
    with mailbox(tmp_path / NAME, did=DID) as box:
        assert not box.was_closed
        assert box.doubts_keys(), "a crash may have lost some"


def test_the_newest_key_of_a_message_is_tried_first_and_repeats_count_once(box: Mailbox) -> None:
    box.put_keys([key(1, nanos=5), key(2, nanos=9), key(3, nanos=7), key(4, nanos=7, wrapped="w1")], listened=[ALICE])
    assert box.wrapped(ALICE, "g") == ["w2", "w3", "w1"]
    assert box.wrapped(CAROL, "g") == box.wrapped(ALICE, "other") == []


def test_strangers_cannot_push_out_the_keys_of_senders(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.mailbox.MOST_FOREIGN_KEYS", 3)
    monkeypatch.setattr("agent.transports.ddhub.receiving.mailbox.MOST_KEYS", 10)
    box.put_keys([key(0, nanos=1)], listened=[ALICE])
    box.put_keys([key(n, sender=CAROL, of=f"g{n}", nanos=n) for n in range(100)], listened=[ALICE])
    assert box.wrapped(ALICE, "g") == ["w0"]
    assert [n for n in range(100) if box.wrapped(CAROL, f"g{n}")] == [97, 98, 99]
    box.put_keys([key(n, of=f"h{n}", nanos=n) for n in range(100)], listened=[ALICE])
    assert [n for n in range(100) if box.wrapped(ALICE, f"h{n}")][-1] == 99
    assert len([n for n in range(100) if box.wrapped(ALICE, f"h{n}")]) <= 10


def test_keys_that_were_used_make_room_for_others(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.mailbox.MOST_KEYS", 4)
    monkeypatch.setattr("agent.transports.ddhub.receiving.mailbox.MOST_WAITING_KEYS", 3)
    box.put_keys([key(n, of=f"g{n}", nanos=n) for n in range(4)], listened=[ALICE])
    assert not box.has_room_for_keys()
    box.finish([("m2", ALICE, "g2", 2), ("m3", ALICE, "g3", 3)], client_id="c")
    assert box.has_room_for_keys()
    box.put_keys([key(n, of=f"g{n}", nanos=n) for n in (4, 5, 6)], listened=[ALICE])
    assert [n for n in range(7) if box.wrapped(ALICE, f"g{n}")] == [1, 4, 5, 6]


def test_a_message_with_very_many_keys_is_not_tried_for_ever(box: Mailbox) -> None:
    box.put_keys([key(n, of="g1", nanos=n) for n in range(40)], listened=[ALICE])
    tried = box.wrapped(ALICE, "g1")
    assert tried == [f"w{n}" for n in reversed(range(8, 40))]
    box.park([(message(1), Why.KEY, len(tried))], client_id="c")
    assert not box.parked(TOPIC, [ALICE])[0].has_new_key


@pytest.mark.parametrize(
    "odd", [key(1, of="g" * 201), key(1, sender="s" * 201), key(1, wrapped="w" * 2049)], ids=["id", "sender", "key"]
)
def test_keys_that_cannot_be_any_take_no_room(box: Mailbox, odd: ReceivedKey) -> None:
    box.put_keys([odd], listened=[odd.sender])
    assert box.wrapped(odd.sender, odd.gateway_id) == []


def test_what_waits_by_topic_and_sender_oldest_first(box: Mailbox) -> None:
    messages = [
        (message(1, nanos=9), Why.KEY, 0),
        (message(2, nanos=3), Why.SENDER, 0),
        (message(3, sender=CAROL), Why.KEY, 0),
    ]
    box.park(messages, client_id="c")
    assert [each.id for each in box.parked(TOPIC, [ALICE])] == ["m2", "m1"]
    assert [each.id for each in box.parked(TOPIC, [CAROL, ALICE])] == ["m3", "m2", "m1"]
    assert box.parked("a0", [ALICE]) == []
    box.finish([("m2", ALICE, "g2", 3)], client_id="c")
    assert [each.id for each in box.parked(TOPIC, [ALICE])] == ["m1"]
    assert box.parked_message("m2") is None


def test_a_key_that_has_not_been_tried(box: Mailbox) -> None:
    box.put_keys([key(1, of="g1")], listened=[ALICE])
    box.park([(message(1), Why.KEY, 1), (message(2), Why.KEY, 0)], client_id="c")
    assert [each.has_new_key for each in box.parked(TOPIC, [ALICE])] == [False, False]
    box.put_keys([key(2, of="g1")], listened=[ALICE])
    assert [each.has_new_key for each in box.parked(TOPIC, [ALICE])] == [True, False]
    box.park([(message(1), Why.KEY, 2)], client_id="c")
    assert [each.has_new_key for each in box.parked(TOPIC, [ALICE])] == [False, False]


def test_the_oldest_that_waits_is_given_up_for_room(box: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.transports.ddhub.receiving.mailbox.MOST_PARKED", 20_000)
    text = "0" * 4000
    waiting = [(message(n, nanos=10 - n, text=text), Why.KEY, 0) for n in range(4)]
    assert [each.id for each in box.park(waiting[:2], client_id="c")] == []
    assert [each.id for each in box.park(waiting[2:], client_id="c")] == ["m3", "m2"]
    assert box.known(["m0", "m1", "m2", "m3"]) == {"m0", "m1", "m2", "m3"}, "given up is done with"
    assert box.owed("c") == ["m0", "m1", "m2", "m3"]


def test_what_waited_leaves_no_large_files(tmp_path: Path, box: Mailbox) -> None:
    box.park([(message(1, text="0" * (6 << 20)), Why.KEY, 0)], client_id="c")
    box.finish([("m1", ALICE, "g1", 1)], client_id="c")
    box.settle(["m1"], client_id="c")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5 << 20


def test_what_the_broker_has_forgotten_is_dropped_and_told(box: Mailbox) -> None:
    box.put_keys([key(1, nanos=5), key(2, of="used", nanos=5), key(3, sender=CAROL, nanos=5)], listened=[ALICE])
    box.put_keys([key(4, of="new", nanos=6)], listened=[ALICE])
    box.park([(message(1, nanos=5), Why.KEY, 0), (message(2, nanos=6), Why.KEY, 0)], client_id="c")
    box.finish([("m3", ALICE, "used", 5), ("m4", ALICE, "x", 6)], client_id="c")
    expired = box.expire(6)
    assert [each.id for each in expired.parked] == ["m1"]
    assert expired.unused_keys == {ALICE: 1}
    assert box.known(["m1", "m2", "m3", "m4"]) == {"m2", "m4"}
    assert box.owed("c") == ["m2", "m4"]
    assert (box.wrapped(ALICE, "g"), box.wrapped(ALICE, "new")) == ([], ["w4"])
    again = box.expire(6)
    assert (again.parked, again.unused_keys) == ([], {})


def test_the_latest_time_of_the_broker(box: Mailbox) -> None:
    assert [box.latest(seen) for seen in (0, 5, 3, 0, 1 << 80)] == [0, 5, 5, 5, 1 << 80]
    assert box.latest() == (1 << 63) - 1, "what SQLite can hold"
    box.put_keys([key(1, nanos=10**29)], listened=[])
    box.finish([("m", ALICE, "g", 10**29)], client_id="c")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    second = mailbox(tmp_path / NAME, did=DID)
    with (
        mailbox(tmp_path / NAME, did=DID),
        pytest.raises(MailboxError, match="in use by another process") as raised,
        second,
    ):
        pass
    assert "a folder with copies of rsa-*.pem" in raised.value.hint
    with mailbox(tmp_path / NAME, did=DID):
        pass


def test_a_mailbox_of_another_participant(tmp_path: Path) -> None:
    with mailbox(tmp_path / NAME, did=DID):
        pass
    with pytest.raises(MailboxError, match=f"belongs to {DID}, not to {ALICE}"), mailbox(tmp_path / NAME, did=ALICE):
        pass
    with mailbox(tmp_path / NAME, did=DID) as box:
        assert box.was_closed


def test_a_mailbox_that_is_damaged(tmp_path: Path) -> None:
    with mailbox(tmp_path / NAME, did=DID):
        pass
    damage(tmp_path / "mailbox.db")
    with pytest.raises(MailboxError, match=r"mailbox\.db is damaged") as raised, mailbox(tmp_path / NAME, did=DID):
        pass
    assert "move it away: a new one begins with all that the broker still has" in raised.value.hint


def test_a_mailbox_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mailbox.db").write_bytes(b"no database" * 1000)
    with pytest.raises(MailboxError, match="is damaged"), mailbox(tmp_path / NAME, did=DID):
        pass


def test_a_mailbox_of_a_newer_program(tmp_path: Path) -> None:
    with mailbox(tmp_path / NAME, did=DID) as box:
        box._file._db.execute("PRAGMA user_version=9")
    with pytest.raises(MailboxError, match="is of version 9, this program knows 1"), mailbox(tmp_path / NAME, did=DID):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(MailboxError, match="cannot keep a mailbox in"),
        mailbox(tmp_path / "file" / "x" / NAME, did=DID),
    ):
        pass
    (tmp_path / "mailbox.db").mkdir()
    with pytest.raises(MailboxError, match=r"mailbox\.db"), mailbox(tmp_path / NAME, did=DID):
        pass
