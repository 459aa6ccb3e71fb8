"""Further raw-context models: decoders of transformers, DPT, the whole history as context."""

from dataclasses import asdict, replace

import pytest
import torch
from fixtures import CELLS, CHOICE, HEADS, REGION_LEN, WIDTH, make_teacher, make_triple

from ad.model import ModelConfig, Triple
from ad.on_policy import RecordingPolicy, live, triple_of
from nets.spaces import FieldSpec
from pipelines.config import RunConfig
from pipelines.methods import METHODS
from tasks.darkroom import DarkRoomFamily
from teacher.causal_decoder import CausalDecoder
from teacher.dpt import DPT
from teacher.idt import IDT
from teacher.model import TeacherConfig, TeacherError, TeacherModelConfig
from teacher.sliding_window import SlidingWindow
from training.config import load_config

ROOM = DarkRoomFamily(size=3, horizon=4)
LLAMA = {"model_type": "llama", "intermediate_size": 24}
MAMBA = {"model_type": "mamba", "state_size": 4, "conv_kernel": 3}
GPT2 = {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def config_of(n_context_regions=1, **settings):
    settings = {"n_layers": 2, **settings}
    teacher = TeacherConfig(n_context_regions=n_context_regions, **settings)
    sizes = asdict(ModelConfig(WIDTH, HEADS))
    return TeacherModelConfig(CELLS.to_json(), CHOICE.to_json(), REGION_LEN, sizes, asdict(teacher))


def decoder(described, n_context_regions=1, **settings):
    torch.manual_seed(0)
    return CausalDecoder(config_of(n_context_regions, kwargs={"config": described}, **settings))


def dpt(n_context_regions=1, **settings):
    torch.manual_seed(0)
    return DPT(config_of(n_context_regions, **{"sees": "step", **settings}))


def idt(n_context_regions=1, chunk_len=3, **settings):
    torch.manual_seed(0)
    settings = {"n_layers": 3, "kwargs": {"chunk_len": chunk_len}, **settings}
    return IDT(config_of(n_context_regions, **settings))


def lived(model, n_regions=4):
    policy = RecordingPolicy(model)
    return live(policy, ROOM, [ROOM.tasks()[i] for i in (0, 5, 7)], n_regions=n_regions, seed=1)


@pytest.mark.parametrize("n_context_regions", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda r: decoder(LLAMA, r),
        lambda r: decoder(MAMBA, r),
        lambda r: decoder(GPT2, r),
        dpt,
        idt,
        lambda r: idt(r, chunk_len=1),
        # The whole history: as many regions as there are, those before the first being absent.
        lambda r: make_teacher(3 * r),
    ],
    ids=["llama", "mamba", "gpt2", "dpt", "idt", "idt of single steps", "whole history"],
)
def test_acting_is_what_is_computed_offline(make, n_context_regions):
    model = make(n_context_regions)
    found = lived(model)
    batch = triple_of(found.regions, model.n_context_regions, {})
    model.eval()
    with torch.no_grad():
        nll = model.actions.nll(model(batch).parameters, batch.query.actions)
    torch.testing.assert_close(-nll, found.log_probs.flatten(0, 1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("described", [LLAMA, MAMBA], ids=["llama", "mamba"])
def test_a_decoder_of_transformers_learns_is_saved_and_is_loaded(described, tmp_path):
    model, batch = decoder(described), make_triple(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model.actions.nll(model(batch).parameters, batch.query.actions).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(str(tmp_path))
    again = CausalDecoder.from_pretrained(str(tmp_path))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(batch).parameters, model(batch).parameters)


@pytest.mark.parametrize("described", [LLAMA, MAMBA], ids=["llama", "mamba"])
def test_a_decoder_of_transformers_is_causal_and_reads_its_context(described):
    model, batch = decoder(described).eval(), make_triple(4)
    with torch.no_grad():
        before = model(batch).parameters
        later = Triple(batch.context, batch.has_context, batch.query.map(torch.clone))
        later.query.rewards[:, 3] += 1
        after = model(later).parameters
        other = Triple(make_triple(4).context, batch.has_context, batch.query)
        elsewhere = model(other).parameters
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 1e-4
    moved = (elsewhere - before).abs().amax((1, 2))
    assert (moved[batch.has_previous] > 1e-4).all()
    assert (moved[~batch.has_previous] < 1e-5).all()


def test_a_state_says_how_many_bytes_it_holds_at_full_length():
    llama, mamba = decoder(LLAMA), decoder(MAMBA)
    keys_and_values = 2 * 2 * llama.sequence_len * WIDTH * 4  # two blocks
    with torch.no_grad():
        assert llama.start(3).n_bytes == 3 * keys_and_values
        assert (
            mamba.start(3).n_bytes == 3 * 2 * (2 * WIDTH) * (3 + 4) * 4
        )  # inner x (window, state)
        found = lived(llama, 1)
    assert found.log_probs.shape == (3, 1, REGION_LEN)


@pytest.mark.parametrize(
    ("described", "settings", "told"),
    [
        (None, {}, "expected config, a mapping with model_type"),
        ({"model_type": "lama"}, {}, "describes no decoder"),
        ({"model_type": "llama", "hidden_sise": 3}, {}, "has no 'hidden_sise'"),
        ({"model_type": "bert"}, {}, "llama"),
        (LLAMA, {"sees": "step"}, "teacher.sees is 'step'"),
        (LLAMA, {"dropout": 0.1}, "teacher.dropout is 0.1"),
    ],
)
def test_decoders_that_cannot_serve_are_refused_in_a_sentence(described, settings, told):
    kwargs = {"config": described} if described is not None else {}
    with pytest.raises(TeacherError) as refused:
        CausalDecoder(config_of(kwargs=kwargs, **settings))
    assert told in str(refused.value)


def shuffled(batch, generator):
    """The same transitions, those of a row's regions in another order."""
    order = torch.randperm(2 * REGION_LEN, generator=generator)

    def moved(field):
        flat = field.flatten(1, 2)[:, order]
        return flat.view(field.shape)

    return Triple(batch.context.map(moved), batch.has_context, batch.query)


def test_the_context_of_dpt_is_a_set():
    batch = make_triple(4, 2)
    batch.has_context[:] = True
    batch.context.mask[:] = True
    other = shuffled(batch, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model, teacher = dpt(2).eval(), make_teacher(2).eval()
        torch.testing.assert_close(model(other).parameters, model(batch).parameters)
        assert (teacher(other).parameters - teacher(batch).parameters).abs().max() > 1e-3
        batch.context.rewards[:, 0, 0] += 1.0  # what it holds is read
        assert (model(other).parameters - model(batch).parameters).abs().max() > 1e-4


def test_a_query_of_dpt_is_an_observation_alone():
    batch = make_triple(4)
    other = Triple(batch.context, batch.has_context, batch.query.map(torch.clone))
    other.query.rewards[:] += 1.0
    other.query.actions[:] = (other.query.actions + 1) % 5
    other.query.observations[:, 2] = (other.query.observations[:, 2] + 1) % 3
    with torch.no_grad():
        model = dpt().eval()
        before, after = model(batch).parameters, model(other).parameters
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(before[:, kept], after[:, kept])
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-4
    with pytest.raises(TeacherError, match="an observation alone"):
        dpt(sees="region")
    with pytest.raises(TeacherError, match="knows none"):
        dpt(kwargs={"window": 3})


def test_squashed_actions_of_dpt_stay_in_their_bounds():
    bounded = FieldSpec("vector", (2,), (), (-1.0, 0.0), (1.0, 3.0))
    sizes = asdict(ModelConfig(WIDTH, HEADS, squash_actions=True))
    teacher = asdict(TeacherConfig(n_layers=1, sees="step"))
    config = TeacherModelConfig(CELLS.to_json(), bounded.to_json(), REGION_LEN, sizes, teacher)
    model = DPT(config).eval()
    with torch.no_grad():
        parameters = 20 * model(make_triple(4, action=bounded)).parameters
        drawn = model.actions.sample(parameters)
    assert (drawn >= torch.tensor([-1.0, 0.0])).all()
    assert (drawn <= torch.tensor([1.0, 3.0])).all()


def test_an_empty_set_and_padding_change_nothing():
    batch = make_triple(4)
    emptied = replace(batch, context=make_triple(4).context)
    emptied.context.mask[:] = batch.context.mask
    with torch.no_grad():
        model = dpt().eval()
        found, other = model(batch).parameters, model(emptied).parameters
    absent = ~batch.has_previous
    torch.testing.assert_close(found[absent], other[absent])
    assert torch.isfinite(found).all()


def test_the_method_dpt_learns_optimal_actions_from_sets(tmp_path):
    (tmp_path / "a.yaml").write_text("train_teacher: {label_smoothing: 0.1}")
    config = load_config(RunConfig, tmp_path / "a.yaml", [])
    assert "dpt" not in config.methods  # it asks for an expert, which not every family has
    changed = METHODS["dpt"].configure(config)
    assert (changed.teacher.target, changed.teacher.sees) == ("teacher.dpt:DPT", "step")
    assert (changed.train_teacher.target, changed.train_teacher.label_smoothing) == ("optimal", 0)


def test_a_context_of_the_whole_history_reads_its_first_region():
    whole, short = make_teacher(3).eval(), make_teacher(1).eval()
    found = lived(whole)
    batch = triple_of(found.regions, 3, {})
    changed = triple_of(found.regions.map(torch.clone), 3, {})
    first = changed.context.rewards.view(3, 4, 3, REGION_LEN)[:, 3, 0]  # the fourth's farthest
    first += 1.0
    with torch.no_grad():
        moved = (whole(changed).parameters - whole(batch).parameters).abs().amax((1, 2)).view(3, 4)
        same = (short(changed).parameters - short(batch).parameters).abs().max()
    assert (moved[:, 3] > 1e-4).all()
    assert (moved[:, :3] == 0).all()
    assert same == 0


@pytest.mark.parametrize("method", ["sliding_window", "dpt"])
def test_raw_models_without_tokens_of_regions_take_no_tokenisation(method, tmp_path):
    config = TeacherConfig(tokenisation="step", sees="step" if method == "dpt" else "region")
    kwargs = {"window": 8} if method == "sliding_window" else {}
    settings = asdict(replace(config, kwargs=kwargs))
    sizes = asdict(ModelConfig(16, 2))
    built = TeacherModelConfig(CELLS.to_json(), CHOICE.to_json(), 6, sizes, settings)
    with pytest.raises(TeacherError, match="set it to transition"):
        {"sliding_window": SlidingWindow, "dpt": DPT}[method](built)


def test_a_decision_of_idt_sees_what_was_before_its_chunk_alone():
    """Within a chunk a step sees its own steps; what a chunk came to is seen from the next on."""
    model, batch = idt().eval(), make_triple(4)  # chunks of 3 in regions of 6
    with torch.no_grad():
        before = model(batch).parameters
        for place, first_moved in ((1, 2), (2, 3)):
            later = Triple(batch.context, batch.has_context, batch.query.map(torch.clone))
            later.query.rewards[:, place] += 1
            moved = (model(later).parameters - before).abs().amax(-1)  # (B, L)
            assert (moved[:, :first_moved] < 1e-6).all()
            assert (moved[:, first_moved:] > 1e-5).all()
        other = Triple(make_triple(4).context, batch.has_context, batch.query)
        moved = (model(other).parameters - before).abs().amax((1, 2))
    assert (moved[batch.has_previous] > 1e-4).all()
    assert (moved[~batch.has_previous] < 1e-6).all()


def test_idt_attends_to_less_learns_is_saved_and_is_loaded(tmp_path):
    model, batch = idt(2, chunk_len=2), make_triple(6, 2)
    assert model.context_tokens == 2 * 3 * (REGION_LEN // 2) + 3
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model.actions.nll(model(batch).parameters, batch.query.actions).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(str(tmp_path))
    again = IDT.from_pretrained(str(tmp_path))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(batch).parameters, model(batch).parameters)


@pytest.mark.parametrize(("region_len", "chunk_len"), [(6, 3), (80, 5), (32, 4), (7, 1)])
def test_chunks_divide_a_region_without_being_told(region_len, chunk_len):
    config = config_of(n_layers=3)
    config.region_len = region_len
    assert IDT(config).chunk_len == chunk_len


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kwargs": {"chunk_len": 4}}, "give a divisor of 6"),
        ({"kwargs": {"window": 4}}, "IDT knows chunk_len alone"),
        ({"sees": "step"}, "name the method idt"),
        ({"n_layers": 2}, "IDT needs 3 at least"),
        ({"tokenisation": "step"}, "set it to transition"),
    ],
)
def test_what_idt_cannot_be_is_refused(settings, told):
    with pytest.raises(TeacherError, match=told):
        idt(**settings)


def test_idt_cuts_regions_of_one_length():
    config = config_of(n_layers=3)
    config.longest_region = REGION_LEN + 2
    with pytest.raises(TeacherError, match=r"sampling\.jitter"):
        IDT(config)


def test_raw_regions_are_as_many_as_the_method_says(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "collect: {styles: [ppo, random], n_regions: 6, regions: {random: 9}}\n"
        "teacher: {sees: step, n_context_regions: 3, n_layers: 5, dropout: 0.2}\n"
    )
    config = load_config(RunConfig, tmp_path / "a.yaml", [])
    for name, n_regions in (("previous_region", 1), ("whole_history", 8)):
        assert name not in config.methods
        own = METHODS[name].configure(config).teacher
        assert own == replace(config.teacher, sees="region", n_context_regions=n_regions)
    assert METHODS["idt"].configure(config).teacher.target == "teacher.idt:IDT"
