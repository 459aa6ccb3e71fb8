"""One `RunConfig` holds every section: one YAML describes one experiment for all stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ad.batches import SamplingConfig
from ad.decoder import DecoderConfig
from ad.evaluate import EvaluateConfig, ValidationConfig
from ad.model import ModelConfig
from ad.objectives import LossConfig, PretrainLossConfig
from ad.on_policy import RolloutsConfig
from ad.policy_gradient import PolicyGradientLossConfig
from base.ranges import Above, AtLeast, Between, Choices, Distinct, NonEmpty, PathText, PlainName
from compression.bottleneck import BOTTLENECKS, bottleneck_class
from compression.compressor import CompressorConfig
from compression.memory import MEMORIES, MemoryConfig, memory_class
from compression.reconstruction import ReconstructionConfig
from histories.collection import CollectConfig
from histories.completion import ImportConfig
from histories.exports import ExportConfig
from pipelines.combinations import check_variants
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
        check_variants(self)
        self._check_windows()
        self._check_capacity()
        self._check_cut_down()
        if self.memory.kind in MEMORIES:  # a user's own is imported where it is built
            memory_class(self.memory.kind).check(self.memory)
        self._check_losses()
        self._check_rollouts()

    def _check_windows(self) -> None:
        """Batches are whole windows."""
        window = self.sampling.window
        for name in ("train_teacher", "distill", "finetune"):
            optim = getattr(self, name).optim
            if optim.batch_size % (window * optim.accumulation_steps):
                raise ValueError(
                    f"{name}.optim.batch_size is {optim.batch_size}, but sampling.window={window} "
                    f"with {name}.optim.accumulation_steps={optim.accumulation_steps} needs a "
                    f"multiple of {window * optim.accumulation_steps}"
                )

    def _check_capacity(self) -> None:
        """A capacity weight has something to act on."""
        weights = {
            "pretrain.lambda_cap": self.pretrain.lambda_cap,
            "distill.loss.lambda_cap": self.distill.loss.lambda_cap,
            "finetune.loss.lambda_cap": self.finetune.loss.lambda_cap,
            "on_policy.loss.lambda_cap": self.on_policy.loss.lambda_cap,
        }
        kind = self.compressor.bottleneck
        for key, weight in weights.items():
            if weight > 0 and not bottleneck_class(kind).has_capacity:
                limited = [n for n, b in BOTTLENECKS.items() if bottleneck_class(b).has_capacity]
                raise ValueError(
                    f"{key} is {weight}, but compressor.bottleneck={kind} has no capacity for it "
                    f"to act on; set it to 0, or take one that has ({', '.join(limited)})"
                )

    def _check_losses(self) -> None:
        """What losses ask of the models is what the models are."""
        frozen = self.distill.freeze_compressor and self.pretrain.enabled
        stages = {"distill": self.distill} | (
            {"finetune": self.finetune} if self.finetune.enabled else {}
        )
        stages |= {"on_policy": self.on_policy} if self.on_policy.enabled else {}
        for name, stage in stages.items():
            if stage.loss.queries == "all":
                for key, sees in (("decoder", self.decoder.sees), ("teacher", self.teacher.sees)):
                    if sees != "step":
                        raise ValueError(
                            f"{name}.loss.queries is all, but {key}.sees={sees}: an observation "
                            "that was not visited has no steps before it to be seen; set "
                            f"{key}.sees to step, or queries to visited"
                        )
            if stage.loss.attention > 0 and self.decoder.reads == "prefix":
                raise ValueError(
                    f"{name}.loss.attention is {stage.loss.attention}, but decoder.reads=prefix "
                    "has no cross-attention whose outputs could be compared; set it to 0, or reads "
                    "to cross"
                )
            if stage.loss.ahead > 0 and stage.loss.n_ahead > self.region_len:
                raise ValueError(
                    f"{name}.loss.n_ahead is {stage.loss.n_ahead}, but region_len is "
                    f"{self.region_len}: no step has so many after it; give at most that"
                )
            if stage.loss.attention > 0 and self.memory.kind != "one_shot":
                raise ValueError(
                    f"{name}.loss.attention is {stage.loss.attention}, but "
                    f"memory.kind={self.memory.kind} shows the decoder other vectors than a "
                    "region's latents; set it to 0, or memory.kind to one_shot"
                )
        if self.distill.loss.attention > 0 and frozen:
            raise ValueError(
                f"distill.loss.attention is {self.distill.loss.attention}, but the compressor, "
                "which alone it trains, is frozen; set distill.freeze_compressor to false, or "
                "attention to 0"
            )

    def _check_rollouts(self) -> None:
        """What has acted in a rollout is what is trained on it."""
        memory = self.memory
        for name in ("policy_gradient", "on_policy"):
            stage = getattr(self, name)
            n_regions = stage.rollouts.n_regions
            if memory.kind not in MEMORIES or not stage.enabled:
                continue
            kept = memory_class(memory.kind).regions_kept(memory)
            more = kept is None or kept > memory.n_regions
            if more and n_regions > memory.n_regions + 1:
                raise ValueError(
                    f"{name}.rollouts.n_regions is {n_regions}, but memory.kind={memory.kind} is "
                    f"led over {memory.n_regions} regions in training: what acted in later regions "
                    f"had seen more; give at most {memory.n_regions + 1}, or raise memory.n_regions"
                )
        shipped = memory.kind in MEMORIES
        if self.policy_gradient.enabled and shipped and memory_class(memory.kind).draws(memory):
            raise ValueError(
                "policy_gradient is enabled, but memory.kwargs.pick=random draws anew which "
                "regions are read: the latents that were acted with cannot be computed again; set "
                "policy_gradient.enabled to false, or pick to similar"
            )
        kind = self.compressor.bottleneck
        if self.policy_gradient.enabled and bottleneck_class(kind).has_capacity:
            raise ValueError(
                f"policy_gradient is enabled, but compressor.bottleneck={kind} sends noise that is "
                "drawn anew: the latents that were acted with cannot be computed again; set "
                "policy_gradient.enabled to false, or take another bottleneck"
            )

    def _check_cut_down(self) -> None:
        """Latents are such that they can be cut down at test as asked."""
        shown, number = self.evaluate.n_shown, self.evaluate.number
        kind, m = self.compressor.bottleneck, self.compressor.n_latents
        if number and kind in BOTTLENECKS and kind != "continuous":
            raise ValueError(
                f"evaluate.number is {number}, but compressor.bottleneck={kind} counts bits of its "
                "own; round plain latents only, of compressor.bottleneck=continuous"
            )
        if shown > m:
            raise ValueError(f"evaluate.n_shown is {shown}, expected at most {m}, the n_latents")
        if 0 < shown < m and not self.compressor.nested:
            raise ValueError(
                f"evaluate.n_shown is {shown} of {m}, but only nested latents work in part; train "
                "with compressor.nested=true"
            )
        if shown and self.memory.kind not in MEMORIES:
            raise ValueError(
                f"evaluate.n_shown is {shown}, but memory.kind={self.memory.kind} need not show "
                "latents as it was given them; leave n_shown at 0"
            )


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
