"""From an MQTT payload to values: exactly, and whatever the bytes are."""

from __future__ import annotations

import hashlib
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.mqtt.config import MqttDevice
from adapters.mqtt.device import TopicDevice
from adapters.mqtt.message import Message
from adapters.mqtt.packets import LARGEST, Malformed, Packets
from adapters.mqtt.payload import find, parse, pointer
from adapters.mqtt.timestamps import FORMATS
from agent.errors import AcquisitionError
from agent.model import Cause, Point, Quality, Sample, Value, ValueType
from agent.ports import Arrival

MS = 1_000_000
S = 1000 * MS
NO, BAD = Quality.NO_VALUE, Quality.BAD_ENCODING
DAY = 1_769_860_800 * S  # 2026-01-31T12:00:00Z


def device(*points: dict[str, Any], **more: Any) -> TopicDevice:
    named = [{"name": f"p{index}", **each} for index, each in enumerate(points)]
    raw = {"id": "d", "connection": "c", "topic": "site/+/state", "groups": {"g": {"points": named}}, **more}
    config = MqttDevice.model_validate(raw)
    return TopicDevice(config, {"g": config.point_names("g")})


def arrival(payload: bytes | str, **more: Any) -> Arrival:
    raw = payload if isinstance(payload, bytes) else payload.encode()
    return Arrival(Message("site/battery/state", raw, **more), 5, ((0, "g"),))


def decode(one: TopicDevice, payload: bytes | str, **more: Any) -> Sample:
    return one.decode("g", arrival(payload, **more))


def first(one: TopicDevice, payload: bytes | str) -> tuple[Value, Quality | None]:
    sample = decode(one, payload)
    return sample.values[0], dict(sample.quality).get(0)


def meaning(value: Value, point: Point) -> Decimal:
    assert type(value) is int
    return Decimal(value).scaleb(point.exponent)


# ---- JSON -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"ON", "not JSON at character 0"),
        (b'{"a":1}}', "not JSON at character 7"),
        (b'{"a":', "not JSON at character 5"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b"9" * 5000, "a number with too many digits"),
        (b"1e99999999999999999999", "a number with an exponent out of reach"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"\0", "not JSON at character 0"),
    ],
)
def test_what_cannot_be_parsed(payload: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        parse(payload)
    with pytest.raises(AcquisitionError) as caught:
        decode(device({"at": "/a"}), payload)
    digest = hashlib.sha256(payload).hexdigest()[:16]
    assert caught.value.cause is Cause.DECODE_ERROR
    assert caught.value.detail == f"site/battery/state {len(payload)} bytes sha256 {digest}: {text}"


@pytest.mark.parametrize(
    ("payload", "document"),
    [
        (b'\xef\xbb\xbf {"a": 1} \r\n', {"a": 1}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b"0.10", Decimal("0.10")),
        (b"1E2", Decimal(100)),
        (b"12345678901234567890", 12345678901234567890),
        (b"[true,null]", [True, None]),
    ],
)
def test_what_is_parsed(payload: bytes, document: Any) -> None:
    assert parse(payload) == document


@given(st.binary(max_size=200) | st.text(alphabet='{}[]:,"\\u0d8-+.eE19tfn \n', max_size=60).map(str.encode))
@example(b'{"p":1e999999,"q":-1e-999999}')
@example(b'{"p":"\\ud800"}')
def test_any_bytes_yield_a_sample_or_a_decode_error(payload: bytes) -> None:
    kinds = ("number", "integer", "float", "boolean", "text")
    one = device(
        *({"at": at, "type": kind} for kind in kinds for at in ("", "/p", "/0")), timestamp={"at": "", "format": "unix"}
    )
    try:
        sample = decode(one, payload)
    except AcquisitionError as error:
        if error.cause is not Cause.DECODE_ERROR:
            raise
        return
    codes = dict(sample.quality)
    for index, (value, point) in enumerate(zip(sample.values, one.points("g"), strict=True)):
        assert (value is None) == (codes.get(index, 9) <= NO)
        match value, point.type:
            case int(), ValueType.INTEGER:
                assert -(1 << 63) <= value < 1 << 64
            case float(), ValueType.FLOAT:
                assert math.isfinite(value)
            case str(), ValueType.TEXT:
                assert value.encode() is not None
            case _:
                assert value is None or point.type is ValueType.BOOLEAN


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", ()), ("/", ("",)), ("/a/b", ("a", "b")), ("/a~1b/m~0n", ("a/b", "m~n")), ("/~01", ("~1",)), ("/ ", (" ",))],
)
def test_pointers(text: str, tokens: tuple[str, ...]) -> None:
    assert pointer(text) == tokens


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, "0": "key", "deep": {"x": [{"y": 7}]}}),
        ("/foo/0", "bar"),
        ("/foo/1", "baz"),
        ("/foo/2", None),
        ("/foo/-", None),
        ("/foo/01", None),
        ("/foo/-1", None),
        ("/foo/99999999999999", None),
        ("/foo/\u0661", None),  # a digit, and no index
        ("/", 0),
        ("/a~1b", 1),
        ("/m~0n", 8),
        ("/0", "key"),
        ("/deep/x/0/y", 7),
        ("/deep/x/0/y/z", None),
        ("/nowhere/x", None),
    ],
)
def test_what_pointers_find(text: str, found: Any) -> None:
    document = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, "0": "key", "deep": {"x": [{"y": 7}]}}
    assert find(document, pointer(text)) == found


# ---- times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "raw", "wall"),
    [
        ("iso8601", '"2026-01-31T12:00:00Z"', DAY),
        ("iso8601", '"2026-01-31t12:00:00.5z"', DAY + S // 2),
        ("iso8601", '"2026-01-31 12:00:00,123456789Z"', DAY + 123_456_789),
        ("iso8601", '"2026-01-31T13:00:00+01:00"', DAY),
        ("iso8601", '"2026-01-31T06:30:00-0530"', DAY),
        ("iso8601", '"2026-01-31T14:00:00+02"', DAY),
        ("iso8601", '"1970-01-01T00:00:00Z"', 0),
        ("iso8601", '"2262-04-11T23:47:16.854775807Z"', (1 << 63) - 1),
        ("iso8601", '"2262-04-11T23:47:16.854775808Z"', None),
        ("iso8601", '"1969-12-31T23:59:59Z"', None),
        ("iso8601", '"1970-01-01T00:00:00+00:01"', None),
        ("iso8601", '"2026-01-31T12:00:00"', None),
        ("iso8601", '"2026-02-30T12:00:00Z"', None),
        ("iso8601", '"2026-01-31T24:00:00Z"', None),
        ("iso8601", '"2026-01-31T12:00:60Z"', None),
        ("iso8601", '"2026-01-31T12:00:00+24:00"', None),
        ("iso8601", '"2026-01-31T12:00:00.1234567899Z"', DAY + 123_456_789),
        ("iso8601", f'"2026-01-31T12:00:00.{"0" * 8}19{"9" * 4000}Z"', DAY + 1),
        ("iso8601", '"2026-01-31T12:00:00.Z"', None),
        ("iso8601", '"2026-01-31T12:00Z"', DAY),
        ("iso8601", '"2026-01-31 13:00+01:00"', DAY),
        ("iso8601", '"2026-01-31T12:00.5Z"', None),
        ("iso8601", '"2026-01-31T12:00"', None),
        ("iso8601", '"2026-01-31T12Z"', None),
        ("iso8601", '"2026-01-31"', None),
        ("iso8601", '"\u0662026-01-31T12:00:00Z"', None),
        ("iso8601", "1769860800", None),
        ("unix", "1769860800", DAY),
        ("unix", "1769860800.123456789", DAY + 123_456_789),
        ("unix", "1769860800.1234567899", DAY + 123_456_789),
        ("unix", "1.7698608e9", DAY),
        ("unix", '"1769860800.5"', DAY + S // 2),
        ("unix", f'"1769860800.{"0" * 8}19{"9" * 4000}"', DAY + 1),
        ("unix", '"1769860800."', None),
        ("unix", "9223372036", 9_223_372_036 * S),
        ("unix", "9223372037", None),
        ("unix", "-1", None),
        ("unix", "-0.0000000001", None),
        ("unix", "1e999999", None),
        ("unix", "9" * 4000, None),
        ("unix", "true", None),
        ("unix", "null", None),
        ("unix", "{}", None),
        ("unix", '"1e9"', None),
        ("unix", '""', None),
        ("unix-ms", "1769860800001", DAY + MS),
        ("unix-ms", '"1769860800001"', DAY + MS),
        ("unix-ms", "1769860800000.000001", DAY + 1),
        ("unix-us", "1769860800000001", DAY + 1000),
        ("unix-ns", "1769860800000000001", DAY + 1),
        ("unix-ns", str(1 << 63), None),
    ],
)
def test_times(form: str, raw: str, wall: int | None) -> None:
    one = device({"at": "/w"}, timestamp={"at": "/ts", "format": form})
    sample = decode(one, f'{{"ts":{raw},"w":1}}')
    assert sample.source_time == wall
    assert sample.quality == (() if wall is not None else ((0, Quality.SUSPECT),))


def test_a_time_that_is_not_there() -> None:
    one = device({"at": "/w"}, {"at": "/x"}, timestamp={"at": "/ts", "format": "unix"})
    sample = decode(one, '{"w":1}')
    assert (sample.source_time, sample.values) == (None, (1, None))
    assert sample.quality == ((0, Quality.SUSPECT), (1, NO))


def test_without_a_configured_time_there_is_none() -> None:
    sample = decode(device({"at": "/w"}), '{"w":1,"ts":5}')
    assert (sample.source_time, sample.quality) == (None, ())
    assert (sample.started, sample.ended) == (5, 5)


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_a_time_survives_in_every_format(wall: int) -> None:
    for form, digits in (("unix", 9), ("unix-ms", 6), ("unix-us", 3), ("unix-ns", 0)):
        text = f"{wall // 10**digits}" + (f".{wall % 10**digits:0{digits}}" if digits else "")
        assert FORMATS[form](parse(text.encode())) == wall
        assert FORMATS[form](text) == wall


# ---- values -----------------------------------------------------------------------------------------------------

HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("kind", "raw", "value", "code"),
    [
        ("number", "null", None, NO),
        ("number", "true", None, BAD),
        ("number", '"5"', None, BAD),
        ("number", "{}", None, BAD),
        ("number", "-7", -7, None),
        ("number", "7.0", 7, None),
        ("number", "-0.0", 0, None),
        ("number", "0e50", 0, None),
        ("number", "1e2", 100, None),
        ("number", HUGE, None, BAD),
        ("number", "1e999999", None, BAD),
        ("integer", "5", 5, None),
        ("integer", "5.0", 5, None),
        ("integer", "5e3", 5000, None),
        ("integer", "5.5", None, BAD),
        ("integer", "1e999999", None, BAD),
        ("integer", "1e-999999", None, BAD),
        ("integer", str((1 << 64) - 1), (1 << 64) - 1, None),
        ("integer", str(1 << 64), None, BAD),
        ("integer", str(-(1 << 63)), -(1 << 63), None),
        ("integer", str(-(1 << 63) - 1), None, BAD),
        ("integer", "false", None, BAD),
        ("float", "0.1", 0.1, None),
        ("float", "3", 3.0, None),
        ("float", "1e308", 1e308, None),
        ("float", "1e309", None, BAD),
        ("float", HUGE, None, BAD),
        ("float", "true", None, BAD),
        ("boolean", "true", True, None),
        ("boolean", "1", None, BAD),
        ("boolean", "null", None, NO),
        ("text", '"\u00e4 \\u00e4"', "ä ä", None),
        ("text", '""', "", None),
        ("text", '"\\ud800"', None, BAD),
        ("text", '"\\ud83d\\ude00"', "\U0001f600", None),
        ("text", '"' + "a" * 1024 + '"', "a" * 1024, None),
        ("text", '"' + "a" * 1025 + '"', None, BAD),
        ("text", '"' + "\u00e4" * 513 + '"', None, BAD),
        ("text", "5", None, BAD),
    ],
)
def test_values(kind: str, raw: str, value: Value, code: Quality | None) -> None:
    for at, payload in (("", raw), ("/a", f'{{"a":{raw}}}'), ("/a/0", f'{{"a":[{raw}]}}')):
        one = device({"at": at, "type": kind})
        assert first(one, payload) == (value, code)
        assert type(first(one, payload)[0]) is type(value)
        assert one.revision == 0


def test_a_field_that_is_missing() -> None:
    assert first(device({"at": "/a"}), "{}") == (None, NO)
    assert first(device({"at": "/a/b"}), '{"a":5}') == (None, NO)


def test_the_levels_of_a_topic() -> None:
    one = device({"topic_level": 2}, {"topic_level": 4}, topic="site/#")
    sample = decode(one, "{}")
    assert (sample.values, sample.quality) == (("battery", None), ((1, NO),))


def test_what_points_say() -> None:
    one = device({"at": "/w", "unit": "W", "decimals": 2}, {"topic_level": 2}, {"at": "/m", "values": {"0": "off"}})
    assert one.points("g") == (
        Point("p0", "W", ValueType.INTEGER, -2, "mqtt:site/+/state /w"),
        Point("p1", None, ValueType.TEXT, 0, "mqtt:site/+/state level 2"),
        Point("p2", None, ValueType.INTEGER, 0, "mqtt:site/+/state /m", {0: "off"}),
    )
    assert (one.info.id, one.info.adapter) == ("d", "mqtt")


def test_only_selected_points_are_read() -> None:
    points = [{"name": name, "at": f"/{name}"} for name in ("a", "b", "c")]
    config = MqttDevice.model_validate(
        {"id": "d", "connection": "c", "groups": {"g": {"topic": "t", "points": points}}}
    )
    one = TopicDevice(config, {"g": ("c", "a")})
    assert decode(one, '{"a":1,"b":2,"c":3}').values == (3, 1)
    assert [point.name for point in one.points("g")] == ["c", "a"]


# ---- decimals are learned ---------------------------------------------------------------------------------------


def test_decimals_are_learned() -> None:
    one = device({"at": ""}, {"at": "", "type": "float"})
    steps = [
        ("50", 50, 0, 0),
        ("49.980", 4998, -2, 1),  # trailing zeros are no decimals
        ("50", 5000, -2, 1),
        ("49.9", 4990, -2, 1),
        ("-0.0001", -1, -4, 2),
        ("2e1", 200_000, -4, 2),
    ]
    for text, value, exponent, revision in steps:
        assert first(one, text) == (value, None)
        assert (one.points("g")[0].exponent, one.revision) == (exponent, revision)
    assert one.points("g")[1].exponent == 0


def test_decoding_again_yields_the_same() -> None:
    one = device({"at": ""})
    again = arrival("1.25")
    assert one.decode("g", again) == one.decode("g", again)
    assert one.revision == 1


def test_configured_decimals_need_no_learning() -> None:
    one = device({"at": "", "decimals": 3})
    assert first(one, "1.5") == (1500, None)
    assert one.revision == 0


@pytest.mark.parametrize(
    "text",
    ["0.1234567890123456", "92233720368547758.08", "1e19", "-9223372036854775809", "1e-16", "1.5e300", "1" + "0" * 300],
)
def test_what_no_exponent_carries_makes_a_float(text: str) -> None:
    one = device({"at": ""})
    exact = Decimal(repr(float(text))) == Decimal(text)
    assert first(one, text) == (float(text), None if exact else Quality.SUSPECT)
    point = one.points("g")[0]
    assert (point.type, point.exponent, one.revision) == (ValueType.FLOAT, 0, 1)
    assert first(one, "2") == (2.0, None), "it stays a float"
    assert type(first(one, "2")[0]) is float
    assert first(one, "2.5") == (2.5, None)
    assert first(one, HUGE) == (None, BAD)
    assert one.revision == 1


def test_a_large_value_behind_fine_ones_makes_a_float() -> None:
    one = device({"at": ""})
    assert first(one, "0.123456789012345") == (123456789012345, None)
    assert first(one, "9999") == (9999.0, None)
    assert one.points("g")[0].type is ValueType.FLOAT


def test_the_edges_of_64_bits() -> None:
    one = device({"at": ""})
    assert first(one, "9223372036854775807") == (9223372036854775807, None)
    assert first(one, "-922337203685477580.8") == (-(1 << 63), None)
    assert (one.points("g")[0].exponent, one.revision) == (-1, 1)


def test_names_of_values_fix_the_exponent() -> None:
    one = device({"at": "", "values": {"0": "off", "1": "run"}})
    assert first(one, "1.5") == (None, BAD)
    assert first(one, "1") == (1, None)
    assert one.revision == 0


def test_several_points_learn_in_one_revision() -> None:
    one = device({"at": "/a"}, {"at": "/b"})
    assert decode(one, '{"a":0.5,"b":0.25}').values == (5, 25)
    assert (one.revision, [point.exponent for point in one.points("g")]) == (1, [-1, -2])


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=None).filter(lambda d: abs(d) < 10**25)))
def test_a_decimal_survives_exactly(numbers: list[Decimal]) -> None:
    one = device({"at": ""})
    for number in numbers:
        text = str(number)
        value, code = first(one, text)
        point = one.points("g")[0]
        exact = point.type is ValueType.INTEGER or Decimal(repr(float(number))) == number
        assert code == (None if exact else Quality.SUSPECT), "what is good is exactly what was sent"
        if point.type is ValueType.INTEGER:
            assert meaning(value, point) == number
            assert -15 <= point.exponent <= 0
        else:
            assert value == float(number)


@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1), st.integers(min_value=0, max_value=15))
def test_whatever_64_bits_carry_stays_an_integer(scaled: int, decimals: int) -> None:
    one = device({"at": ""})
    number = Decimal(scaled).scaleb(-decimals)
    value, _ = first(one, str(number))
    assert meaning(value, one.points("g")[0]) == number


# ---- quality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [("0.1", None), ("0.09999", Quality.OUT_OF_RANGE), ("30", None), ("30.0001", Quality.OUT_OF_RANGE), ("null", NO)],
)
def test_range(text: str, code: Quality | None) -> None:
    one = device({"at": "", "range": [0.1, 30]}, {"at": "", "type": "float", "range": [0.1, 30]})
    sample = decode(one, text)
    assert dict(sample.quality) == ({} if code is None else {0: code, 1: code})
    assert (sample.values[0] is None) == (code is NO)


def test_wide_ranges() -> None:
    one = device({"at": "", "range": [0, 1e99]})
    assert first(one, "1e18") == (10**18, None)
    assert first(one, "-1") == (-1, Quality.OUT_OF_RANGE)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ({}, None),
        ({"retain": True}, Quality.OLD_DATA),
        ({"dup": True, "qos": 1}, Quality.POSSIBLE_DUPLICATE),
        ({"dup": True, "retain": True, "qos": 1}, Quality.OLD_DATA),
    ],
)
def test_flags(flags: dict[str, Any], code: Quality | None) -> None:
    one = device(
        {"at": "/a"},
        {"at": "/b"},
        {"at": "/c", "range": [0, 1]},
        {"at": "/d"},
        timestamp={"at": "/t", "format": "unix"},
    )
    sample = decode(one, '{"t":1,"a":1,"b":null,"c":2,"d":"x"}', **flags)
    expected = {0: code, 1: NO, 2: Quality.OUT_OF_RANGE, 3: BAD}
    assert dict(sample.quality) == {index: each for index, each in expected.items() if each is not None}
    without = decode(one, '{"a":1,"c":2}', **flags)
    assert dict(without.quality)[0] is Quality.SUSPECT, "the lowest code that applies"


def test_a_payload_is_parsed_once() -> None:
    one = arrival('{"a":1}')
    assert one.message.document() is one.message.document()
    bad = arrival("x")
    for _ in range(2):
        with pytest.raises(ValueError, match="not JSON"):
            bad.message.document()


def test_a_long_topic_is_cut() -> None:
    text = Message("t" * 60_000, b"").describe()
    assert len(text) < 300
    assert text.startswith("t" * 200 + "... 0 bytes sha256 e3b0c44298fc1c14")


def test_a_topic_stays_on_its_line() -> None:
    assert Message("a\nb\u2028c", b"").describe().startswith("a\\u000ab\\u2028c 0 bytes")


# ---- packets ----------------------------------------------------------------------------------------------------

CONNACK = bytes.fromhex("20020000")


def packet(header: int, body: bytes) -> bytes:
    length, size = bytearray(), len(body)
    while True:
        size, digit = size >> 7, size & 0x7F
        length.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([header]) + bytes(length) + body


def publish(
    payload: bytes, *, topic: bytes = b"a/b", mid: bytes = b"", properties: bytes = b"", flags: int = 0
) -> bytes:
    return packet(0x30 | flags, len(topic).to_bytes(2, "big") + topic + mid + properties + payload)


def messages(*pieces: bytes, version5: bool = False) -> list[Message]:
    packets = Packets(version5=version5)
    for piece in pieces:
        packets.feed(piece)
    return packets.messages


def test_messages() -> None:
    packets = Packets(version5=False)
    pubrel = bytes.fromhex("62020102")
    suback = bytes.fromhex("9003000101")
    packets.feed(CONNACK + publish(b"{}") + suback + publish(b"x" * 300, mid=b"\1\2", flags=0x0B) + pubrel)
    assert bytes(packets.others) == CONNACK + suback
    assert packets.released == [0x102]
    plain, other = packets.messages
    assert (plain.topic, plain.payload, plain.qos, plain.mid, plain.dup, plain.retain) == (
        "a/b",
        b"{}",
        0,
        0,
        False,
        False,
    )
    assert (other.payload, other.qos, other.mid, other.dup, other.retain) == (b"x" * 300, 1, 0x102, True, True)


def test_properties_are_skipped() -> None:
    long = b"\x26" + b"\0\1k" + b"\0\xc8" + b"v" * 200
    sized = bytes([len(long) & 0x7F | 0x80, len(long) >> 7]) + long
    stream = CONNACK + publish(b"{}", properties=b"\0") + publish(b"1", mid=b"\0\1", properties=sized, flags=4)
    first_one, second = messages(stream, version5=True)
    assert (first_one.payload, second.payload, second.qos) == (b"{}", b"1", 2)


@given(st.data())
def test_packets_come_in_any_pieces(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 400), max_size=6))
    stream = CONNACK + b"".join(publish(b"p" * size, mid=b"\0\7", flags=2) for size in sizes)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [len(each.payload) for each in messages(*pieces)] == sizes


@pytest.mark.parametrize("version5", [False, True])
@pytest.mark.parametrize("step", [1 << 16, 4099])
def test_what_is_too_large_is_skipped_and_stated(version5: bool, step: int) -> None:
    payload = bytes(range(256)) * (LARGEST // 256) + b"end"
    properties = b"\x80\x02" + b"u" * 256 if version5 else b""
    small = publish(b"{}", properties=b"\0" if version5 else b"")
    stream = CONNACK + small + publish(payload, mid=b"\0\5", properties=properties, flags=2) + small
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    before, large, behind = messages(*pieces, version5=version5)
    assert (before.payload, behind.payload) == (b"{}", b"{}")
    assert (large.topic, large.qos, large.mid, large.payload) == ("a/b", 1, 5, b"")
    digest = hashlib.sha256(payload).hexdigest()[:16]
    assert large.describe() == f"a/b {len(payload)} bytes sha256 {digest}"
    with pytest.raises(ValueError, match="larger than 1048576 bytes"):
        large.document()


def test_a_topic_that_is_not_utf8_blocks_nothing() -> None:
    [message] = messages(CONNACK + publish(b"{}", topic=b"a/\xff", mid=b"\0\1", flags=2))
    assert (message.topic, message.mid) == ("a/\\xff", 1)


@pytest.mark.parametrize("version5", [False, True])
@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "the answer is not MQTT"),
        (publish(b"{}"), "the answer is not MQTT"),
        (CONNACK + b"\x30\xff\xff\xff\xff\x01", "a length of more than four bytes"),
        (CONNACK + b"\x30\x00", "a PUBLISH is too short"),
        (CONNACK + b"\x30\x03\x00\x05a", "a PUBLISH is "),
        (CONNACK + b"\x32\x04\x00\x01a\x00", "a PUBLISH is too short"),
        (CONNACK + publish(b"\0", mid=b"\0\0", flags=2), "identifier 0"),
        (CONNACK + publish(b"\0", mid=b"\0\1", flags=6), "QoS 3"),
        (CONNACK + publish(b"\0", topic=b""), "without topic"),
        (CONNACK + b"\x62\x01\x00", "a PUBREL without identifier"),
        (CONNACK + b"\x90\xff\xff\xff\x7f", "a packet of 268435455 bytes that is no PUBLISH"),
    ],
)
def test_what_is_no_mqtt(stream: bytes, text: str, version5: bool) -> None:
    with pytest.raises(Malformed, match=text):
        messages(stream, version5=version5)


def test_properties_behind_the_end() -> None:
    with pytest.raises(Malformed, match="within its properties"):
        messages(CONNACK + publish(b"", properties=b"\x05ab"), version5=True)
    large = publish(b"u" * (LARGEST + 9), properties=b"\xff\xff\xff\x7f")
    with pytest.raises(Malformed, match="within its properties"):
        messages(CONNACK + large, version5=True)


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_packets_or_malformed(data: bytes, version5: bool) -> None:
    packets = Packets(version5=version5)
    try:
        packets.feed(CONNACK + data)
    except Malformed:
        return
    assert all(json.dumps(message.topic) for message in packets.messages)
