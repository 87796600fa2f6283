"""A trainer that publishes its model at the end of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy, TrainOutput

from ..publishing.hub import prepare_repository, push_to_hub
from ..publishing.model_card import CardFacts
from ..publishing.records import RESULTS_FILE, RUN_FILE, load_run, run_of_weights
from .checkpoints import DurableTrainer
from .log_lines import use_lines


FULL_EVAL = (
    "bf16_full_eval, fp16_full_eval: evaluation would round the weights of the model that is saved and published; "
    "bf16=True also covers evaluation"
)


class PublishingTrainer(DurableTrainer):
    """
    A [`DurableTrainer`] that publishes with [`~c2fmae_hf.publishing.hub.push_to_hub`] at the end of training: in one
    commit, with a card made from its records. `args.hub_strategy` becomes `end`, since uploads of transformers during
    training have no card and no licence, and their `training_args.bin` contains local paths.

    `args.hub_token` is moved into the trainer and set to `None`, since transformers saves the arguments beside the
    weights.

    Args: those of [`~transformers.Trainer`], and
        card_facts ([`CardFacts`], *optional*), license_text (`str`, *optional*): Passed to `push_to_hub`.

    Raises:
        [`HubError`]: with `push_to_hub`, if publishing would fail, or weights from elsewhere have no licence.
        `ValueError`: if evaluation would round the weights; on `train`, if weights to train are not float32.
    """

    def __init__(
        self, *args: Any, card_facts: CardFacts | None = None, license_text: str | None = None, **kwargs: Any
    ) -> None:
        self._card_facts, self._license_text = card_facts, license_text
        super().__init__(*args, **kwargs)
        if self.args.bf16_full_eval or self.args.fp16_full_eval:
            raise ValueError(FULL_EVAL)
        self._hub_token, self.args.hub_token = self.args.hub_token, None
        self.args.hub_strategy = HubStrategy.END
        use_lines(self)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        assert self.model is not None
        half = [value.dtype for value in self.model.parameters() if value.requires_grad and value.itemsize < 4]
        if half and not self.is_deepspeed_enabled:
            raise ValueError(
                f"model: expected weights in float32 to train, got {str(half[0]).removeprefix('torch.')}, in which "
                "most steps are lost to rounding; load them with dtype=torch.float32; for speed train with bf16=True"
            )
        return super().train(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository before training, so that problems with publishing show at once."""
        if self.is_world_process_zero():
            self.hub_model_id = prepare_repository(  # type: ignore[assignment]
                self.accelerator.unwrap_model(self.model),
                self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name,
                facts=self._card_facts,
                license_text=self._license_text,
                private=self.args.hub_private_repo if private is None else private,
                token=token or self.args.hub_token,
            )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """
        Publish the model as it is now, with the records of its weights in `args.output_dir`.

        Args:
            commit_message, token, revision, private (*optional*): Override those of the training arguments.
            blocking (`bool`): Has no effect; the method always waits.
            kwargs: Other arguments of [`push_to_hub`].

        Returns:
            `CommitInfo`, in the main process.
        """
        if not self.is_world_process_zero():
            return None
        args = self.args
        folder = Path(str(args.output_dir))
        model = self.accelerator.unwrap_model(self.model)
        runs = list(kwargs.pop("runs", ()))
        if any((folder / name).is_file() for name in (RUN_FILE, RESULTS_FILE)):
            run = load_run(folder, "training")
            runs += [run] if run_of_weights(run, model) is not None else []
        return push_to_hub(
            model,
            self.hub_model_id or args.hub_model_id or folder.absolute().name,
            processor=self.processing_class,
            runs=runs,
            commit_message=commit_message,
            token=token or self._hub_token,
            revision=revision or args.hub_revision,
            private=args.hub_private_repo if private is None else private,
            **{"facts": self._card_facts, "license_text": self._license_text, **kwargs},
        )
