"""One `RunConfig` holds every section: one YAML describes one experiment for all stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ad.batches import SamplingConfig
from ad.decoder import DecoderConfig
from ad.evaluate import EvaluateConfig, ValidationConfig
from ad.losses import LossConfig
from ad.model import ModelConfig
from ad.objectives import PretrainLossConfig
from ad.on_policy import RolloutsConfig
from ad.policy_gradient import PolicyGradientLossConfig
from base.ranges import Above, AtLeast, Between, Choices, Distinct, NonEmpty, PathText, PlainName
from compression.compressor import CompressorConfig
from compression.memory import MemoryConfig
from compression.reconstruction import ReconstructionConfig
from histories.collection import CollectConfig
from histories.completion import ImportConfig
from histories.exports import ExportConfig
from pipelines.combinations import check_combinations
from pipelines.methods import METHODS, TRAINED, UNTRAINED
from probes.probing import ProbeConfig
from tasks.splits import NAMED_SPLITS
from teacher.model import TeacherConfig
from teacher.monte_carlo import MonteCarloConfig
from teacher.noise_expert import NoiseConfig
from teacher.posterior_sampling import PosteriorConfig
from teacher.ppo_config import SourceConfig
from training.optim import OptimConfig


@dataclass(frozen=True)
class FamilyConfig:
    """Which tasks.

    Attributes:
        target: Import path `module:Class` of a `tasks.family.TaskFamily`.
        kwargs: Its keyword arguments.
    """

    target: str = "tasks.darkroom:DarkRoomFamily"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitConfig:
    """Which tasks are trained on, validated on, tested on.

    Attributes:
        named: A named split, whose test tasks are fixed; null draws them.
        seed: Of the drawing.
        n_validation: Validation tasks.
        n_test: Test tasks; ignored for a named split.
    """

    named: Annotated[str, Choices(tuple(NAMED_SPLITS))] | None = None
    seed: Annotated[int, AtLeast(0)] = 0
    # no empty parts: checkpoints are chosen on one, results are of the other
    n_validation: Annotated[int, AtLeast(1)] = 8
    n_test: Annotated[int, AtLeast(1)] = 8


@dataclass(frozen=True)
class TrainTeacherConfig:
    """Training of the raw-context models, teacher and long_context.

    Attributes:
        optim: Updates, batch, rates, intervals.
        label_smoothing: Of the cross-entropy.
        target: What the actions are learned from: those `recorded`, or one of the targets of
            `distill.loss.target`.
    """

    optim: OptimConfig = field(default_factory=OptimConfig)
    label_smoothing: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    target: Literal["recorded", "bayes", "optimal", "monte_carlo"] = "recorded"

    def __post_init__(self) -> None:
        """Refuse smoothing of nothing."""
        if self.target != "recorded" and self.label_smoothing > 0:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but target is {self.target}, a "
                "distribution, not an action that could be smoothed; set it to 0"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of the compressor.

    Attributes:
        enabled: Whether compressors are pretrained at all.
        optim: Updates, batch, rates, intervals.
        loss: What it learns to do with a region's latents.
        lambda_cap: λ_cap, weight of the capacity term R(Z), see `distill.loss.lambda_cap`.
        weights: Of the compressor's own auxiliary losses by name; 1 where not named.
    """

    enabled: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: PretrainLossConfig = field(default_factory=PretrainLossConfig)
    lambda_cap: Annotated[float, AtLeast(0)] = 0.0
    weights: dict[str, Annotated[float, AtLeast(0)]] = field(default_factory=dict)


@dataclass(frozen=True)
class DistillConfig:
    """Training of the decoder.

    Attributes:
        freeze_compressor: Whether a pretrained compressor stays frozen.
        optim: Updates, batch, rates, intervals.
        loss: Weights of the losses.
    """

    freeze_compressor: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True)
class FinetuneConfig:
    """Joint training of decoder and compressor.

    Attributes:
        enabled: Whether there is such a stage at all.
        keep_start: Whether the distilled weights stay where validation finds none better; false
            takes the best of the fine-tuned ones, as an ablation of gamma must.
        optim: Updates, batch, rates, intervals.
        compressor_lr_ratio: Learning rate of the compressor as a share of `optim.learning_rate`.
        loss: Weights of the losses.
    """

    enabled: bool = True
    keep_start: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    compressor_lr_ratio: Annotated[float, AtLeast(0)] = 0.5
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True)
class OwnLossConfig(LossConfig):
    """As of the other stages, but that nothing is learned from the actions recorded."""

    alpha: Annotated[float, Between(0, 0)] = 0.0
    beta: Annotated[float, Above(0)] = 1.0


@dataclass(frozen=True)
class PolicyGradientConfig:
    """Fine-tuning by expected return, on the student's own rollouts on training tasks.

    Attributes:
        enabled: Whether there is such a stage at all.
        keep_start: Whether the weights it starts from stay where validation finds none better.
        optim: Updates, batch, rates, intervals.
        compressor_lr_ratio: Learning rate of the compressor as a share of `optim.learning_rate`.
        rollouts: What the student acts on, from which each batch is taken.
        loss: Weights of the losses.
    """

    enabled: bool = False
    keep_start: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    compressor_lr_ratio: Annotated[float, AtLeast(0)] = 0.5
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    loss: PolicyGradientLossConfig = field(default_factory=PolicyGradientLossConfig)

    def __post_init__(self) -> None:
        """Refuse batches that cut rollouts apart, and a baseline of nobody."""
        self.rollouts.n_updates(self.optim)
        if self.loss.baseline == "streams" and self.rollouts.n_streams < 2:
            raise ValueError(
                "loss.baseline is streams, the mean of the other streams of a task, but "
                "rollouts.n_streams is 1; give 2 or more, or set loss.baseline to value"
            )


@dataclass(frozen=True)
class OnPolicyConfig:
    """Distillation on the student's own rollouts on training tasks.

    Attributes:
        enabled: Whether there is such a stage at all.
        keep_start: Whether the weights it starts from stay where validation finds none better.
        optim: Updates, batch, rates, intervals.
        compressor_lr_ratio: Learning rate of the compressor as a share of `optim.learning_rate`.
        rollouts: What the student acts on, from which each batch is taken.
        loss: Weights of the losses; alpha must be 0, for the recorded actions are its own.
    """

    enabled: bool = False
    keep_start: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    compressor_lr_ratio: Annotated[float, AtLeast(0)] = 0.5
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    loss: OwnLossConfig = field(default_factory=OwnLossConfig)

    def __post_init__(self) -> None:
        """Refuse batches that cut rollouts apart."""
        self.rollouts.n_updates(self.optim)


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, and how.

    Attributes:
        also: Further run directories in the same table.
        solved_threshold: Normalised final return from which a task counts as solved.
    """

    also: Annotated[tuple[Annotated[str, PathText()], ...], Distinct()] = ()
    solved_threshold: Annotated[float, Between(0, 1)] = 0.8


@dataclass(frozen=True)
class ShipConfig:
    """Where a trained student is copied to, to be shipped.

    Attributes:
        folder: Holds a folder per model.
        name: Of the model's folder; empty for that of the run directory and the method.
    """

    folder: Annotated[str, PathText()] = "models"
    name: Annotated[str, PlainName()] = ""


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of. See configs/base.yaml for what each section does.

    Attributes:
        run_dir: Where everything of the run goes.
        seed: Training seed of a stage that is run by itself.
        seeds: Training seeds of `pipelines.run`; `pipelines.compare` takes all it finds.
        stack_seeds: Whether `pipelines.run` trains all training seeds of a method's stage as one
            model; null does so where there is a GPU.
        method: Which method a training or evaluation stage is for.
        methods: Methods of `pipelines.run`.
        histories: An existing histories.h5 to use instead of collecting.
        region_len: L, transitions in a region and PPO's `n_steps`.
        n_workers: Processes of `pipelines.run`; 0 takes one per core.
        threads: torch threads per process.
        trackers: accelerate trackers, such as tensorboard, wandb, all; empty for none.
    """

    run_dir: Annotated[str, PathText()] = ""
    seed: Annotated[int, AtLeast(0)] = 0
    seeds: Annotated[list[Annotated[int, AtLeast(0)]], NonEmpty(), Distinct()] = field(
        default_factory=lambda: [0]
    )
    stack_seeds: bool | None = None
    method: Annotated[str, Choices(TRAINED + UNTRAINED)] = "student"
    methods: Annotated[
        list[Annotated[str, Choices(TRAINED + UNTRAINED)]], NonEmpty(), Distinct()
    ] = field(default_factory=lambda: [name for name in TRAINED if METHODS[name].usual])
    histories: Annotated[str, PathText()] = ""
    region_len: Annotated[int, AtLeast(1)] = 80
    n_workers: Annotated[int, Between(0, 1024)] = 0
    threads: Annotated[int, Between(1, 1024)] = 1
    trackers: Annotated[list[str], Distinct()] = field(default_factory=lambda: ["tensorboard"])
    family: FamilyConfig = field(default_factory=FamilyConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    import_histories: ImportConfig = field(default_factory=ImportConfig)
    export_histories: ExportConfig = field(default_factory=ExportConfig)
    monte_carlo: MonteCarloConfig = field(default_factory=MonteCarloConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    long_context: TeacherConfig = field(default_factory=lambda: TeacherConfig(n_context_regions=4))
    train_teacher: TrainTeacherConfig = field(default_factory=TrainTeacherConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    policy_gradient: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    ship: ShipConfig = field(default_factory=ShipConfig)

    @property
    def longest_region(self) -> int:
        """The most transitions that a region may have."""
        return self.sampling.longest(self.region_len)

    def __post_init__(self) -> None:
        """Refuse what parts make no sense together."""
        check_combinations(self)


RUN_INDEPENDENT = (
    "run_dir",
    "seed",
    "seeds",
    "stack_seeds",
    "method",
    "methods",
    "n_workers",
    "threads",
    "trackers",
    "collect.n_workers",
    "import_histories",
    "export_histories",
    "evaluate",
    "compare",
    "probe",
    "ship",
)
"""Keys that may differ between two uses of one run directory."""
