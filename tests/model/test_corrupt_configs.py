"""Whatever a config.json says, the answer is a spec or one sentence, never a traceback."""

from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.model.catalogue import catalogue, config_of
from planner.model.count import count
from planner.model.interpret import interpret

BY_TYPE = {
    config["model_type"]: config
    for config in (config_of(row.fields) for row in catalogue().rows if row.kind == "model")
}
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.just(10**12), st.floats(allow_nan=True), st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.none(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)  # fmt: skip


@given(data=st.data())
def test_a_broken_key_gives_a_spec_or_one_sentence(data):
    config = dict(BY_TYPE[data.draw(st.sampled_from(sorted(BY_TYPE)))])
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            config.pop(name, None)
        else:
            config[name] = data.draw(JUNK)
    try:
        spec = interpret(config)
    except InputError as refusal:
        assert refusal.sentence.startswith("config.json")
        assert "\n" not in refusal.sentence
    else:
        assert count(spec).total == spec.parameters > 0


@given(data=st.data())
def test_a_broken_section_gives_a_spec_or_one_sentence(data):
    wrappers = sorted(kind for kind, config in BY_TYPE.items() if "vision_config" in config)
    config = dict(BY_TYPE[data.draw(st.sampled_from(wrappers))])
    section = data.draw(st.sampled_from([name for name in ("text_config", "vision_config") if name in config]))
    inner = dict(config[section])
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JUNK)
    try:
        spec = interpret({**config, section: inner})
    except InputError as refusal:
        assert refusal.sentence.startswith("config.json")
    else:
        assert count(spec).total == spec.parameters > 0
