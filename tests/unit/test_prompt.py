"""Prompting: what a demonstration is, that it becomes context, and what is reported of it."""

import numpy as np
import pytest
from fixtures import make_student

from ad.evaluate import evaluate_policy, normalized
from ad.policy import ContextPolicy
from ad.prompt import PromptedPolicy, demonstrator, prompted_facts
from ad.rollout import rollout
from nets.spaces import field_spec
from tasks.bandits import KeyedBanditFamily

FAMILY = KeyedBanditFamily(n_contexts=6, n_actions=4, n_tasks=8)
TASKS = FAMILY.tasks()[:4]
L = 12  # two episodes


def student():
    fields = {
        "observation": field_spec(FAMILY.observation_space, "observation"),
        "action": field_spec(FAMILY.action_space, "action"),
    }
    return make_student(region_len=L, **fields).eval()


def prompted(skill, n_regions=1):
    return lambda streams: PromptedPolicy(
        ContextPolicy(student()), demonstrator(FAMILY, streams, skill), n_regions
    )


@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_a_demonstration_has_the_skill_asked_for(skill):
    counts = {"n_seeds": 40, "n_episodes": 4, "final_episodes": 1, "seed": 0}
    result = evaluate_policy(prompted(skill), FAMILY, TASKS, **counts)
    returns = normalized(result.returns, FAMILY, TASKS)
    assert returns[..., :2].mean() == pytest.approx(skill, abs=0.06)
    assert abs(returns[..., 2:].mean()) < 0.15  # an untrained student's own


def test_the_demonstration_is_the_context_of_what_follows():
    """After it the agent acts exactly as one that lived through these transitions itself."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    policy = prompted(0.7)(TASKS)
    rollout(policy, FAMILY, TASKS, n_episodes=4, seed=3, on_step=lambda o, a: seen.append((o, a)))
    again = ContextPolicy(student())
    steps = iter(seen)

    class Replayed:
        def reset(self, n, seed):
            again.reset(n, seed)

        def act(self, observations):
            expected, actions = next(steps)
            assert (observations == expected).all()
            if again.n_closed == 0:
                return again.act_as(observations, actions)
            own = again.act(observations)
            assert (own == actions).all()
            return own

        def observe(self, *transition):
            again.observe(*transition)

    rollout(Replayed(), FAMILY, TASKS, n_episodes=4, seed=3)
    assert next(steps, None) is None


def test_a_demonstration_lasts_as_many_regions_as_asked():
    policy = prompted(1.0, n_regions=2)(TASKS)
    result = rollout(policy, FAMILY, TASKS, n_episodes=6, seed=0)
    assert (result.returns[:, :4] == 6).all()
    assert (result.returns[:, 4:] < 6).any()


def test_what_is_told_of_a_prompted_rollout():
    returns = np.arange(12.0).reshape(1, 12)
    regions = np.array([[0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]])
    told = prompted_facts(returns, regions, n_shown=2, final_episodes=3)
    assert told == {"demonstrated": 2.0, "first": 5.5, "final": 10.0}
    nothing = prompted_facts(returns, regions, n_shown=9, final_episodes=3)
    assert nothing["first"] is None
