import pytest
import torch

from dcal_hf.models import attention_dcal
from dcal_hf.models.attention_dcal import (
    Record,
    attention_flow,
    batch_flow,
    cls_attention,
    cls_rollout,
    dcal_attention_forward,
    gather_tokens,
    join_pairs,
    split_pairs,
    top_patches,
)


def full_rollout(queries, keys, scaling):
    """Abnar & Zuidema's product of full matrices, in float64."""
    tokens = queries[0].size(2)
    rollout = torch.eye(tokens, dtype=torch.float64)
    for query, key in zip(queries, keys):
        attention = (query.double() @ key.double().transpose(2, 3) * scaling).softmax(-1).mean(1)
        rollout = (0.5 * attention + 0.5 * torch.eye(tokens, dtype=torch.float64)) @ rollout
    return rollout


def softmax_attention(module, query, key, value, attention_mask, is_causal, scaling):
    return ((query @ key.transpose(2, 3) * scaling).softmax(-1) @ value).transpose(1, 2), None


def random_heads(blocks=4, batch=2, heads=3, tokens=11, width=8):
    return [2 * torch.randn(batch, heads, tokens, width) for _ in range(blocks)]


@pytest.mark.parametrize("chunk", [1, 4, 128])
def test_streaming_rollout_is_row_zero_of_the_matrix_product(monkeypatch, chunk):
    monkeypatch.setattr(attention_dcal, "ROLLOUT_CHUNK", chunk)
    queries, keys = random_heads(), random_heads()
    rollout = cls_rollout(queries, keys, 8**-0.5)
    torch.testing.assert_close(rollout.double(), full_rollout(queries, keys, 8**-0.5)[:, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(rollout.sum(dim=1), torch.ones(2))


def test_rollout_of_one_block_is_half_its_cls_attention():
    (query,), (key,) = random_heads(blocks=1), random_heads(blocks=1)
    expected = 0.5 * (query @ key.transpose(2, 3) * 0.3).softmax(-1).mean(1)[:, 0]
    expected[:, 0] += 0.5
    torch.testing.assert_close(cls_rollout([query], [key], 0.3), expected)


def test_rollout_is_float32_and_without_gradient_under_autocast():
    queries, keys = ([x.bfloat16().requires_grad_() for x in random_heads()] for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        rollout = cls_rollout(queries, keys, 8**-0.5)
    assert rollout.dtype == torch.float32 and not rollout.requires_grad
    expected = full_rollout([x.detach() for x in queries], [x.detach() for x in keys], 8**-0.5)[:, 0]
    torch.testing.assert_close(rollout.double(), expected, atol=1e-6, rtol=1e-5)


def test_cls_attention_is_the_head_mean_of_row_zero():
    query, key = random_heads(blocks=2)
    expected = (query @ key.transpose(2, 3) * 0.2).softmax(-1).mean(1)[:, 0]
    torch.testing.assert_close(cls_attention(query, key, 0.2), expected)


def test_top_patches_and_their_tokens():
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.9, 0.0, 0.5, 0.7]])
    indices = top_patches(scores, 2)
    assert indices.tolist() == [[1, 3], [0, 3]]
    tokens = torch.arange(2 * 4 * 3).view(2, 4, 3)
    assert torch.equal(gather_tokens(tokens, indices), torch.stack([tokens[0, [1, 3]], tokens[1, [0, 3]]]))


def attend_pairs(query, key, value, **kwargs):
    return dcal_attention_forward(None, query, key, value, attend=softmax_attention, scaling=0.3, **kwargs)[0]


PARTNERS = [(2, 3), (3, 2), (4, 5), (5, 4)]


def test_pairs_share_one_softmax_over_both_images():
    query, key, value = random_heads(blocks=3, batch=6)
    output = attend_pairs(query, key, value, num_paired=4)
    assert torch.equal(output[:2], attend_pairs(query[:2], key[:2], value[:2]))
    for image, other in PARTNERS:
        logits = torch.cat([query[image] @ key[i].transpose(1, 2) for i in (image, other)], dim=-1)
        expected = (0.3 * logits).softmax(-1) @ torch.cat([value[image], value[other]], dim=1)
        torch.testing.assert_close(output[image], expected.transpose(0, 1))


def test_a_subset_of_queries_attends_to_all_tokens_of_both_images():
    """As in the last block, where only CLS is read. All images belong to the PWCA branch."""
    query, key, value = random_heads(blocks=3, batch=4)
    output = attend_pairs(query[:, :, :1], key[:, :, :2], value, memory=(key, value), num_paired=4)
    torch.testing.assert_close(output, attend_pairs(query, key, value, num_paired=4)[:, :1])


@pytest.mark.parametrize("masks", [1, 6])
def test_the_mask_applies_to_the_keys_of_both_images(masks):
    query, key, value = random_heads(blocks=3, batch=6)
    mask = torch.randn(masks, 3, 11, 11)

    def attend(module, query, key, value, attention_mask, is_causal):
        return ((query @ key.transpose(2, 3) + attention_mask).softmax(-1) @ value).transpose(1, 2), None

    output, _ = dcal_attention_forward(None, query, key, value, mask, attend=attend, num_paired=4)
    mask = mask.expand(6, -1, -1, -1)
    assert torch.equal(output[:2], attend(None, query[:2], key[:2], value[:2], mask[:2], False)[0])
    for image, other in PARTNERS:
        logits = [query[image] @ key[i].transpose(1, 2) + mask[image] for i in (image, other)]
        expected = torch.cat(logits, dim=-1).softmax(-1) @ torch.cat([value[image], value[other]], dim=1)
        torch.testing.assert_close(output[image], expected.transpose(0, 1))


@pytest.mark.parametrize("windows", [1, 3])
def test_windows_attend_to_the_same_window_of_the_other_image(windows):
    """Two pairs of images; window w of image i is row i W + w."""
    x = torch.randn(4 * windows, 2, 5, 3)
    rows = join_pairs(x, windows)
    for pair in range(2):
        for window in range(windows):
            both = [x[image * windows + window] for image in (2 * pair, 2 * pair + 1)]
            assert torch.equal(rows[pair * windows + window], torch.cat(both, dim=1))
    assert torch.equal(split_pairs(rows.transpose(1, 2), windows), x.transpose(1, 2))


def test_joining_pairs_does_not_copy():
    projected = torch.randn(6, 5, 2, 3).transpose(1, 2)
    assert join_pairs(projected[2:]).data_ptr() == projected[2:].data_ptr()
    output = torch.randn(2, 10, 2, 3)
    assert split_pairs(output).data_ptr() == output.data_ptr()


def test_noise_replaces_the_distractor():
    query, key, value = random_heads(blocks=3, batch=4)
    torch.manual_seed(3)
    noise_key, noise_value = torch.randn_like(key[2:]), torch.randn_like(value[2:])
    torch.manual_seed(3)
    output = attend_pairs(query, key, value, num_paired=2, pair_noise=True)
    expected = attend_pairs(
        query[2:], torch.cat([key[2:], noise_key], dim=2), torch.cat([value[2:], noise_value], dim=2)
    )
    torch.testing.assert_close(output[2:], expected)


def test_memory_replaces_keys_and_values():
    query, key, value, memory_key, memory_value = random_heads(blocks=5)
    output = attend_pairs(query[:, :, :2], key, value, memory=(memory_key, memory_value))
    assert torch.equal(output, attend_pairs(query[:, :, :2], memory_key, memory_value))


def test_record_contains_only_self_attention_and_is_overwritten():
    query, key, value = random_heads(blocks=3, batch=4)
    record = Record()
    record.query = None
    attend_pairs(query, key, value, num_paired=2, record=record)
    assert torch.equal(record.query, query[:2]) and torch.equal(record.key, key[:2])


def test_one_image_at_a_time_equals_the_full_batch():
    """The CPU processes one image at a time, a compiled graph the full batch."""
    query, key = random_heads(blocks=2, batch=3)
    flow = torch.rand(3, query.size(2))
    torch.testing.assert_close(attention_flow(flow, query, key, 0.3), batch_flow(flow, query, key * 0.3))
