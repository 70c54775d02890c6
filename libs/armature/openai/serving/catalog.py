"""The models of the cell, as its workers' records describe them, with their tokenizers.

A tokenizer is loaded when the first worker of its model joins, off the loop; requests that come earlier wait for it.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.openai.errors import ApiError, model_not_found, no_workers
from armature.openai.parsers.families import AnswerFormat, chosen
from armature.openai.prompt_cache import PromptCache
from armature.openai.serving.options import ServingOptions
from armature.openai.tokenization import ModelTokenizer
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import ROLE_PREFILL, Member, ModelCard

log = logging.getLogger(__name__)

RELOAD_AFTER_S = 5.0
"""A tokenizer that could not be loaded is tried again after this; its directory may have been on its way."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """All that a request needs to know of its model."""

    card: ModelCard
    tokenizer: ModelTokenizer
    hasher: BlockHasher
    prompts: PromptCache
    root: BlockDigest
    """Parent of every prompt's first block, in one cache namespace."""
    eos_ids: frozenset[int]
    format: AnswerFormat
    """How it writes reasoning and tool calls."""

    @property
    def name(self) -> str:
        return self.card.name

    def within(self, cache_namespace: str) -> "ServedModel":
        """The model for those who share no cached KV with others."""
        return replace(self, root=self.hasher.root(self.card.name, cache_namespace)) if cache_namespace else self


class _Loading:
    """One attempt to load a tokenizer."""

    def __init__(self, retry_at_s: float) -> None:
        self.settled = asyncio.Event()
        self.served: ServedModel | None = None
        self.problem = ""
        self.retry_at_s = retry_at_s


@dataclass(slots=True)
class _Model:
    """A name that clients may ask for."""

    created_s: int
    cards: dict[str, ModelCard]
    """By worker, the longest known first: its description counts."""
    card: ModelCard
    waking: set[str] = field(default_factory=set[str])
    """Planners that start a worker when somebody asks."""
    loading: _Loading | None = None
    left_at_s: float = 0.0
    """When its last worker left."""

    @property
    def is_served(self) -> bool:
        """Whether there are workers, or will be some for who asks."""
        return bool(self.cards or self.waking)

    def settle(self) -> None:
        """Go by the first worker's card."""
        card = next(iter(self.cards.values()), self.card)
        if card != self.card:
            self.card, self.loading = card, None


class ModelCatalog:
    """Which models there are. `tokenizers` overrides where a model's tokenizer lies, by model name."""

    def __init__(
        self, tasks: asyncio.TaskGroup, secret: bytes, options: ServingOptions, tokenizers: Mapping[str, Path]
    ) -> None:
        self._tasks = tasks
        self._secret = secret
        self._memory_s = options.model_memory_s
        self._directories = dict(tokenizers)
        self._models: dict[str, _Model] = {}
        self._now_s = asyncio.get_running_loop().time

    def member_changed(self, change: MemberChange, wall_s: float) -> None:
        """A worker has come, changed or left; `wall_s` is the time of day, for clients."""
        member = change.member
        if member.kind == "planner":
            self._promised(member, wall_s, has_left=change.kind == "left")
        if not member.HasField("worker") or not member.worker.model.name:
            return
        if change.kind == "left" or member.worker.role == ROLE_PREFILL:
            self._remove(member)
        else:
            self._add(member, wall_s)

    def served(self) -> dict[str, tuple[ModelCard, int]]:
        """Models that have workers, or get some when asked for: their cards and since when (Unix time)."""
        return {name: (model.card, model.created_s) for name, model in self._models.items() if model.is_served}

    def check_served(self, name: str) -> None:
        """Raise `ApiError` 404 unless the model is served."""
        if name not in self.served():
            raise model_not_found(name, sorted(self.served()))

    def loaded(self, name: str) -> ServedModel | None:
        """The model if it can be used at once; `get` says what is in the way."""
        model = self._models.get(name)
        return model.loading.served if model is not None and model.is_served and model.loading is not None else None

    async def get(self, name: str) -> ServedModel:
        """The model, as soon as its tokenizer is loaded.

        Raises:
            ApiError: 404 if nobody serves it, 503 if its workers have just gone or its tokenizer can't be loaded.
        """
        model = self._models.get(name)
        if model is None:
            raise model_not_found(name, sorted(self.served()))
        if not model.is_served:
            if self._now_s() > model.left_at_s + self._memory_s:
                raise model_not_found(name, sorted(self.served()))
            raise no_workers(f"No worker serves the model '{name}' at the moment; try again")
        loading = self._load(name, model)
        if loading.served is None:
            await loading.settled.wait()
        if loading.served is None:
            message = f"The gateway can't load the tokenizer of the model '{name}': {loading.problem}"
            raise ApiError(503, message, param="model", code="tokenizer_unavailable", retry_after_s=RELOAD_AFTER_S)
        return loading.served

    def _add(self, member: Member, wall_s: float) -> None:
        card = member.worker.model
        model = self._named(card, wall_s)
        model.cards[member.id] = card
        model.settle()
        if model.card != card:
            log.warning("%s describes model %s differently from the others", member.id, card.name)
        self._load(card.name, model)

    def _named(self, card: ModelCard, wall_s: float) -> _Model:
        return self._models.setdefault(card.name, _Model(int(wall_s), {}, card))

    def _promised(self, planner: Member, wall_s: float, *, has_left: bool) -> None:
        """A planner has said which model it starts workers for."""
        for model in self._models.values():
            model.waking.discard(planner.id)
        card = planner.planner.wakes
        if card.name and not has_left:
            self._named(card, wall_s).waking.add(planner.id)
            self._load(card.name, self._models[card.name])

    def _remove(self, member: Member) -> None:
        model = self._models.get(member.worker.model.name)
        if model is not None and model.cards.pop(member.id, None) is not None:
            model.settle()
            model.left_at_s = self._now_s()

    def _load(self, name: str, model: _Model) -> _Loading:
        """The attempt that counts: one that is under way or has succeeded, or a new one."""
        loading, now_s = model.loading, self._now_s()
        if loading is None or (loading.problem and now_s >= loading.retry_at_s):
            loading = model.loading = _Loading(now_s + RELOAD_AFTER_S)
            directory = self._directories.get(name, Path(model.card.path))
            self._tasks.create_task(self._read(model.card, directory, loading), name=f"load tokenizer of {name}")
        return loading

    async def _read(self, card: ModelCard, directory: Path, loading: _Loading) -> None:
        try:
            tokenizer = await asyncio.to_thread(ModelTokenizer.load, directory)
            hasher = BlockHasher(self._secret, card.block_size)
            loading.served = ServedModel(
                card=card,
                tokenizer=tokenizer,
                hasher=hasher,
                prompts=PromptCache(tokenizer.encoder, hasher, tokenizer.cut),
                root=hasher.root(card.name),
                eos_ids=frozenset(card.eos_token_ids),
                format=chosen(card.tool_call_parser, card.reasoning_parser, tokenizer.template_source),
            )
            log.info("model %s is tokenized by %s", card.name, tokenizer.encoder.name)
        except Exception as error:  # a model's directory is foreign: whatever is wrong with it must not end the process
            loading.problem = str(error) or type(error).__name__
            log.error("the tokenizer of model %s can't be loaded", card.name, exc_info=error)
        finally:
            loading.settled.set()
