"""A store of latents or codes: what is kept, on disk in how many bytes, who is near to whom."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from fixtures import make_regions, make_student

from compression.latents import Latents
from compression.store import LatentStore, StoreError, StoreLayout

M, D, N = 3, 4, 30


def made(n=N, seed=0):
    torch.manual_seed(seed)
    return Latents(torch.randn(n, M, D))


def coded(n=N, n_codes=5, seed=0):
    torch.manual_seed(seed)
    return Latents(torch.zeros(n, M, D), codes=torch.randint(n_codes, (n, M, 2)))


def filled(latents, n_codes=0):
    store = LatentStore(StoreLayout.of(latents, n_codes))
    store.append(latents)
    return store


@pytest.mark.parametrize("n_codes", [0, 2, 5, 256, 60_000])
def test_saved_is_loaded_in_the_bytes_that_are_told(tmp_path, n_codes):
    latents = coded(2000, n_codes) if n_codes else made(2000)
    store = filled(latents, n_codes)
    store.append(latents, np.arange(2000) % 7)
    path = tmp_path / "past.safetensors"
    store.save(path)
    again = LatentStore.load(path)
    assert again.layout == store.layout
    assert len(again) == 4000
    kept = latents.codes.int() if n_codes else latents.values
    assert torch.equal(again.entries, torch.cat([kept, kept]))
    assert (again.labels == store.labels).all()
    assert (again.labels[2000:] == np.arange(2000) % 7).all()
    on_disk = path.stat().st_size / 4000
    assert store.layout.bytes_per_region + 8 <= on_disk < store.layout.bytes_per_region + 8.2
    bits = {0: 32 * M * D, 2: 6, 5: 18, 256: 48, 60_000: 96}[n_codes]
    assert store.layout.bytes_per_region == -(-bits // 8)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(path.read_bytes())


def test_nearest_latents_against_an_obvious_slow_search():
    store, asked = filled(made()), made(5, seed=1)
    indices, far = store.nearest(asked, 4)
    for query, found, distances in zip(asked.values, indices, far, strict=True):
        apart = (store.entries - query).square().sum((1, 2)).sqrt()
        torch.testing.assert_close(distances, apart.sort().values[:4])
        torch.testing.assert_close(apart[found], distances)


def test_nearest_codes_differ_in_the_fewest():
    store, asked = filled(coded(), 5), coded(5, seed=1)
    indices, far = store.nearest(asked, 4)
    for query, found, distances in zip(asked.codes, indices, far, strict=True):
        apart = (store.entries != query).sum((1, 2))
        assert distances.tolist() == apart.sort().values[:4].tolist()
        assert apart[found].tolist() == distances.tolist()


def test_a_region_is_nearest_to_itself_whatever_was_appended_since():
    latents = made()
    store = filled(latents)
    assert store.nearest(latents, 1)[0][:, 0].tolist() == list(range(N))
    store.append(Latents(latents.values + 10))
    assert store.nearest(latents, 1)[0][:, 0].tolist() == list(range(N))
    assert store.labels.tolist() == list(range(2 * N))


def test_hidden_latents_are_kept_as_nothing():
    latents = made()
    hidden = Latents(latents.values, torch.ones(N, M, dtype=torch.bool))
    hidden.mask[:, -1] = False
    store = filled(hidden)
    assert not store.entries[:, -1].any()
    assert torch.equal(store.entries[:, 0], latents.values[:, 0])


@pytest.mark.parametrize(
    ("bottleneck", "kwargs"),
    [
        ("fsq", {"levels": [3, 2], "n_groups": 2}),
        ("vq", {"codebook_size": 8, "n_heads": 2}),
        ("vq", {"codebook_size": 8, "n_blocks": 1}),
        ("vq", {"codebook_size": 8, "n_blocks": 2}),
    ],
)
def test_codes_of_a_student_bring_its_latents_back(tmp_path, bottleneck, kwargs):
    student = make_student(bottleneck=bottleneck, bottleneck_kwargs=kwargs)
    student.compress(make_regions(40, 6))  # a codebook begins as the first batch
    student.eval()
    with torch.no_grad():
        latents = student.compress(make_regions(9, 6))
    shape = (1, kwargs["n_blocks"]) if "n_blocks" in kwargs else (2, 2)
    assert latents.codes.shape == (9, *shape)
    assert 0 <= latents.codes.min() <= latents.codes.max() < student.bottleneck.n_codes
    store = filled(latents, student.bottleneck.n_codes)
    store.save(tmp_path / "a.safetensors")
    codes = LatentStore.load(tmp_path / "a.safetensors").entries
    with torch.no_grad():
        found = student.bottleneck.decoded(codes.long())
    torch.testing.assert_close(found, latents.values)
    bits = float(latents.bits_per_region)
    assert bits / 8 <= store.layout.bytes_per_region < bits / 8 + 3


def test_what_does_not_belong_is_refused(tmp_path):
    store = filled(made())
    with pytest.raises(StoreError, match="this store keeps"):
        store.append(Latents(torch.zeros(2, M, D + 1)))
    with pytest.raises(StoreError, match="give one for each"):
        store.append(made(), np.arange(3))
    with pytest.raises(StoreError, match=r"ask for 1 \.\.\. 30"):
        store.nearest(made(), N + 1)
    with pytest.raises(StoreError, match="have none"):
        StoreLayout.of(made(), n_codes=4)
    with pytest.raises(StoreError, match="compared exactly"):
        filled(coded(), 5).nearest(coded(), 1, approximate=True)
    path = tmp_path / "damaged.safetensors"
    for content in (b"", b"x" * 100, pickle.dumps({"entries": 1})):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="no store of latents, or damaged"):
            LatentStore.load(path)
    store.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="damaged"):
        LatentStore.load(path)


def test_an_approximate_index_finds_what_exact_search_finds():
    if importlib.util.find_spec("faiss") is None:
        with pytest.raises(StoreError, match="install the extra"):
            filled(made()).nearest(made(), 1, approximate=True)
        return
    store, asked = filled(made(500)), made(20, seed=1)
    exact, far = store.nearest(asked, 3)
    found, near = store.nearest(asked, 3, approximate=True)
    assert (exact == found).float().mean() > 0.9
    torch.testing.assert_close(near[found == exact], far[found == exact], atol=1e-4, rtol=1e-4)
