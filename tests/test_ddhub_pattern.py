"""Patterns of a topic's schema mean what they mean in ECMAScript, and none takes long."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transports.ddhub.content.pattern import MOST_STEPS, NotJudged, read


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("", "", True),
        ("^[A-Za-z0-9_-]+$", "abc-_9", True),
        ("^[A-Za-z0-9_-]+$", "abc\n", False),  # Python's own $ would take it
        ("^[A-Za-z0-9_-]+$", "", False),
        ("b", "abc", True),
        ("^b", "abc", False),
        ("^a|c$", "xxc", True),
        ("^\\d+$", "\u0661", False),  # digits are ASCII
        ("^\\w$", "\u00e9", False),
        ("^.$", "\r", False),
        ("^.$", "\u2028", False),
        ("^[\\s\\S]*$", "a\nb", True),
        ("^\\s[\\s]$", "\u00a0\ufeff", True),
        ("\\S|[\\S]", "\u2003\x0b", False),
        ("^[^\\S]\\S[\\S]$", "\u3000\u00e9\U0001f600", True),
        ("\\B", "", True),
        ("\\B", "a", False),
        ("^\\u0041\\x42\\u{43}$", "ABC", True),
        ("^a\\/b\\.c\\-d$".replace("\\-", "-"), "a/b.c-d", True),
        ("^[\\-a]$", "-", True),
        ("^[+--]$", ",", True),
        ("^[[&&~|]+$", "[&~|", True),
        ("^(?:ab){2}$", "abab", True),
        ("^(?<year>\\d{4})-\\d{2}$", "2026-11", True),
        ("^(\\d+)(\\.\\d+)?$", "12.50", True),
        ("^(?=a)ab$", "ab", True),
        ("^(?!b)a", "ab", True),
        ("^a{2,3}?$", "aaa", True),
        ("^a{2,}$", "a", False),
        ("\\bb\\b", "a b c", True),
        ("^\\d+\\.\\d+\\.\\d+(-[0-9A-Za-z-.]+)?(\\+[0-9A-Za-z-.]+)?$", "1.0.0-rc.1", True),
        ("^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(\\.\\d{1,6})?Z$", "2026-11-30T00:00:00.5Z", True),
        ("^(on|off)$", "off", True),
    ],
)
def test_what_a_pattern_means(pattern: str, text: str, found: bool) -> None:
    assert read(pattern).found_in(text) is found


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a*)*", "(a|a)*b", "(a|ab)*$", "(a?){50}a{50}", "((a{1,9}){1,9}){1,9}", "(.*a){20}",
        "(?:a+){2,}", "(a)\\1", "\\p{L}", "(?<=a)b", "(?<!a)b", "(?i)a", "(?P<n>a)", "a**", "a*+", "a++", "a{2}{3}",
        "*a", "a{", "a}", "]", "[", "[a", "[]", "[^]", "(", ")", "a)", "(a", "\\", "\\q", "\\u{110000}", "\\ud",
        "a{3,2}", "a{1001}", "x" * 1001, "(" * 30 + ")" * 30, "[z-a]", "\\cA", "^*", "$+", "\\b*", "(?=a)*",
        "\\ud83d\\ude00", "[\\S-a]", "[!-\\s]",
    ],
)  # fmt: skip
def test_what_may_take_long_or_is_not_known_is_not_judged(pattern: str) -> None:
    try:
        found = read(pattern)
    except NotJudged:
        return
    assert found.found_in("a" * 60) is None


@pytest.mark.parametrize(
    ("pattern", "longest"), [("^a+$", 350_000), ("a+$", 900), ("a*a*a*a*b", 8), ("a{1000}", 10_000)]
)
def test_long_texts_are_for_simple_patterns(pattern: str, longest: int) -> None:
    found = read(pattern)
    assert found.found_in("a" * longest) is not None
    assert found.steps("a" * longest) <= MOST_STEPS
    assert found.found_in("a" * (4 * longest)) is None


ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "(?:a|b)", "(?:ab)", "\\w", "(?:a?)"])
MARKS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{1,}", "*?"])
SIMPLE = st.lists(st.tuples(ATOMS, MARKS).map("".join), max_size=4).map("".join)


@settings(max_examples=200, deadline=None)
@given(
    pattern=st.tuples(st.sampled_from(["", "^"]), SIMPLE, st.sampled_from(["", "$"])).map("".join),
    text=st.text("abc", max_size=8),
)
def test_what_both_dialects_share_they_judge_alike(pattern: str, text: str) -> None:
    try:
        found = read(pattern).found_in(text)
    except NotJudged:
        return
    assert found is None or found is (re.search(pattern, text) is not None)


@settings(max_examples=200, deadline=None)
@given(pattern=st.text("ab()[]{}|*+?^$\\.,-:=!<>dwu01", max_size=20), text=st.text("ab01", max_size=40))
def test_no_pattern_crashes(pattern: str, text: str) -> None:
    with suppress(NotJudged):
        read(pattern).found_in(text)
