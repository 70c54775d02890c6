"""Embeddings, tokenize and detokenize, over REST."""

import asyncio
import base64
from array import array
from typing import Any

import grpc
import httpx
import openai
import pytest
from transformers import AutoTokenizer

from armature.openai.serving import embedder
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, TenantEntry, digest_of, new_key
from tests.services.gateway.fakes import FakeRouter
from tests.services.gateway.harness import MODEL, TEXT, card, encode, make_worker, model_directory, running_gateway
from tests.support.eventually import eventually


def vector(tokens: list[int]) -> list[float]:
    """What the fake worker makes of them."""
    return [len(tokens), tokens[0], tokens[-1], 0, 0, 0, 0, 0]


async def embed(client: httpx.AsyncClient, given: Any, **fields: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"model": MODEL, "input": given} | fields)


async def test_openais_client_gets_embeddings_of_every_kind_of_input() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        for given, tokens in (
            (TEXT, [encode(TEXT)]),
            (["hello", TEXT], [encode("hello"), encode(TEXT)]),
            ([5, 6, 7], [[5, 6, 7]]),
            ([[5, 6], [7]], [[5, 6], [7]]),
        ):
            made = await client.embeddings.create(model=MODEL, input=given)  # asks for base64
            assert [one.embedding for one in made.data] == [vector(ids) for ids in tokens]
            assert [one.index for one in made.data] == list(range(len(tokens)))
            plain = await client.embeddings.create(model=MODEL, input=given, encoding_format="float", dimensions=8)
            assert plain.data == made.data
            assert made.usage.prompt_tokens == made.usage.total_tokens == sum(map(len, tokens))
        assert gateway.core.inflight == 0


async def test_base64_holds_32_bit_floats() -> None:
    async with running_gateway(make_worker()) as gateway:
        body = (await embed(gateway.client, [3, 4, 5], encoding_format="base64")).json()
        assert array("f", base64.b64decode(body["data"][0]["embedding"])).tolist() == vector([3, 4, 5])


async def test_many_inputs_go_in_batches_each_placed_by_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "BATCH_TOKENS", 20)
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        lists = [[number, *range(3, 3 + number % 7)] for number in range(1, 200)]
        body = (await embed(gateway.client, lists)).json()
        assert [one["embedding"] for one in body["data"]] == [vector(tokens) for tokens in lists]
        assert len(router.queries) == len(worker.batches) > 30
        assert all(query.prompt_tokens <= 20 and query.prefill_locally for query in router.queries)
        await eventually(lambda: sorted(router.finished()) == sorted(query.request_id for query in router.queries))


async def test_a_batch_moves_on_when_its_worker_fails_and_the_client_sees_nothing_of_it() -> None:
    ill = make_worker("ill", embed_failures=[grpc.StatusCode.UNAVAILABLE])
    full = make_worker("full", embed_failures=[grpc.StatusCode.RESOURCE_EXHAUSTED])
    router = FakeRouter([ill, full, make_worker("well")])
    async with running_gateway(*router.workers, routers=[router]) as gateway:
        assert (await embed(gateway.client, "hello")).status_code == 200
        assert [list(query.excluded_workers) for query in router.queries] == [[], ["ill"], ["ill", "full"]]


async def test_a_full_cell_is_429_and_an_ill_one_503() -> None:
    for code, status in ((grpc.StatusCode.RESOURCE_EXHAUSTED, 429), (grpc.StatusCode.INTERNAL, 503)):
        async with running_gateway(make_worker(embed_failures=[code])) as gateway:
            response = await embed(gateway.client, "hello")
            assert response.status_code == status
            assert int(response.headers["retry-after"]) >= 1


async def test_a_client_that_leaves_ends_the_work() -> None:
    worker = make_worker(step=asyncio.Event())
    async with running_gateway(worker) as gateway:
        asking = asyncio.create_task(embed(gateway.client, "hello"))
        await eventually(lambda: len(worker.batches) == 1)
        asking.cancel()
        await eventually(lambda: gateway.core.inflight == 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [511, 512]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": "a " * 600}, "input"),
        ({"input": [3] * 512}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": 5}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
    ],
)
async def test_wrong_inputs_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with running_gateway(make_worker()) as gateway:
        response = await gateway.client.post("/v1/embeddings", json={"model": MODEL} | fields)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param


async def test_a_model_without_embeddings_says_so() -> None:
    async with running_gateway(make_worker(card=card(embedding_size=0))) as gateway:
        response = await embed(gateway.client, "hello")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
        assert (await embed(gateway.client, "hello", model="other")).status_code == 404


async def test_texts_and_chats_become_the_tokens_that_transformers_gives_and_come_back() -> None:
    reference = AutoTokenizer.from_pretrained(model_directory())
    chat = [{"role": "user", "content": TEXT}]
    async with running_gateway(make_worker()) as gateway:
        body = {"model": MODEL, "prompt": TEXT, "return_token_strs": True}
        made = (await gateway.client.post("/tokenize", json=body)).json()
        assert made == {
            "count": len(made["tokens"]),
            "max_model_len": 512,
            "tokens": reference.encode(TEXT),
            "token_strs": reference.tokenize(TEXT),
        }
        back = await gateway.client.post("/detokenize", json={"model": MODEL, "tokens": made["tokens"]})
        assert back.json() == {"prompt": TEXT}
        made = (await gateway.client.post("/tokenize", json={"model": MODEL, "messages": chat})).json()
        rendered = reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert made["tokens"] == reference.encode(rendered, add_special_tokens=False)
        assert made["token_strs"] is None
        back = await gateway.client.post("/detokenize", json={"model": MODEL, "tokens": made["tokens"]})
        assert back.json() == {"prompt": rendered}


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a " * 600_000}, "prompt"),
        ("/detokenize", {"tokens": [512]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_what_can_not_be_tokenized_is_refused_by_name(route: str, fields: dict[str, Any], param: str) -> None:
    async with running_gateway(make_worker()) as gateway:
        response = await gateway.client.post(route, json={"model": MODEL} | fields)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_model_says_what_clients_may_want_to_know() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        model = (await client.models.retrieve(MODEL)).model_dump()
        assert [one.model_dump() for one in (await client.models.list()).data] == [model]
        assert model["max_model_len"] == 512
        assert model["armature"] == {
            "block_size": 8, "vocab_size": 512, "eos_token_ids": [0, 2], "embedding_size": 8,
        }  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_embeddings_count_against_their_tenants_tokens() -> None:
    key, key_id = new_key()
    book = KeyBook(
        keys={key_id: KeyEntry(tenant="acme", digest=digest_of(key))},
        tenants={"acme": TenantEntry(tokens_per_min=100)},
    )
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        gateway.core.doorkeeper.table = KeyTable(book)
        assert (await embed(gateway.client, "hello")).status_code == 401
        gateway.client.headers["authorization"] = f"Bearer {key}"
        assert (await embed(gateway.client, [5] * 60)).headers["x-ratelimit-remaining-tokens"] == "40"
        refused = await embed(gateway.client, [5] * 60)
        assert (refused.status_code, refused.json()["error"]["param"]) == (429, "tokens_per_min")
        assert [query.tenant for query in router.queries] == ["acme"]
