"""Chat templates of strangers end in time and memory."""

import pytest

from lowtax.common.errors import UserError
from lowtax.data import template_trial
from lowtax.data.template_limits import may_grow, require_bounded
from lowtax.models.embedded import CHAT_TEMPLATE

DOUBLING = "{% set x = messages[0].content %}" + "{% set x = x + x %}" * 60 + "{{ x }}"
MESSAGES = [{"role": "user", "content": "aaaa"}]
GROW = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}"
    "{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 'a' * 10000000000 }}",
    "{{ 9 ** 999999999 }}",
    DOUBLING,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for m in messages recursive %}{{ loop([m, m]) }}{% endfor %}",
    "{{ '%1000000000000d' % 3 }}",
    "{{ 'x'.center(100000000000) }}",
    "{{ 'x' | center(100000000000) }}",
    "{{ messages[0].content.replace('a', messages | string) }}",
    "{% for m in messages %}{% for c in m.content %}{% for d in m.content %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% filter indent(100000000) %}x{% endfilter %}",
    "{% call(x) f() %}{% endcall %}",
    "{{ ''.join(messages) }}{{ lipsum(n=100000) }}",
]


def test_a_template_that_repeats_nothing_needs_no_trial():
    plain = "{% for m in messages %}{{ '<|' + m['role'] + '|>' ~ m.content | trim }}{% if loop.last %}!{% endif %}"
    for template in (CHAT_TEMPLATE, plain + "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"):
        assert not may_grow(template)
    for template in GROW:
        assert may_grow(template), template
    assert may_grow("{{ 1 }}" * 20_000)
    assert may_grow("{% if %}")


def test_a_template_that_grows_is_refused(monkeypatch: pytest.MonkeyPatch):
    for template in (GROW[2], DOUBLING):
        for _ in range(2):  # tried once, and remembered
            with pytest.raises(UserError, match="damaged or hostile"):
                require_bounded(template, "theirs", MESSAGES, {})
    right = (
        "{% set x = messages[0].content %}{% if not x %}{{ raise_exception('no') }}{% endif %}{{ x * 2 }}{{ day() }}"
    )
    require_bounded(right, "ours", MESSAGES, {"day": str})


def test_a_trial_ends_by_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import io
    import json
    import resource

    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    for template, code in (("{% if %}", 0), ("{{ x.y.z }}", 0), ("{{ 'a' * 50000001 }}", template_trial.TOO_LONG)):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"template": template, "variables": [{}]})))
        assert template_trial.main() == code
    assert capsys.readouterr().out == ""
