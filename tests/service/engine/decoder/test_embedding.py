import torch

from service.engine.decoder.embedding import FloatEmbedding, GroupedEmbedding
from service.engine.grouped_weight import GroupedWeight


def test_rows_of_groups_are_those_of_the_dequantized_table() -> None:
    values = torch.randint(0, 256, (5, 32), dtype=torch.uint8)
    table = GroupedWeight(values, torch.rand(5, 2), torch.rand(5, 2), 4, 32)
    token_ids = torch.tensor([3, 0, 3])
    rows = GroupedEmbedding(table)(token_ids)
    assert torch.equal(rows, FloatEmbedding(table.dequantized())(token_ids))
