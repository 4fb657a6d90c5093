"""BERT whose heads have a width of their own: what AutoDistil's extracted subnets are.

This file goes along with an exported model and needs transformers alone; `AutoModel` reads it with
`trust_remote_code=True`.
"""

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class SlicedBertConfig(BertConfig):
    """BertConfig with `head_width` channels a head; a classifier pools "mean" or "first"."""

    model_type = "sliced_bert"
    head_width: int = 64
    pool: str = "mean"


class SlicedBertModel(BertModel):
    """BertModel with queries, keys and values of num_attention_heads * head_width channels."""

    config_class = SlicedBertConfig

    def __init__(self, config: Any, add_pooling_layer: bool | None = None) -> None:
        heads = config.num_attention_heads
        config.num_attention_heads = 1  # BERT's layers refuse a width that the heads do not divide
        if add_pooling_layer is None:
            add_pooling_layer = config.pool == "first"
        super().__init__(config, add_pooling_layer=bool(add_pooling_layer))
        config.num_attention_heads = heads
        width, channels = config.hidden_size, heads * config.head_width
        layers: Any = self.encoder.layer  # Any: a ModuleList of layers
        for layer in layers:
            attention = layer.attention.self
            attention.num_attention_heads = heads
            attention.attention_head_size = config.head_width
            attention.all_head_size = channels
            attention.scaling = config.head_width**-0.5
            for name in ("query", "key", "value"):
                setattr(attention, name, nn.Linear(width, channels))
            layer.attention.output.dense = nn.Linear(channels, width)
        self.post_init()


class SlicedBertForSequenceClassification(BertPreTrainedModel):
    """Classes of a text, from the mean of its tokens or from BERT's pooled first token."""

    config_class = SlicedBertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SlicedBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        if self.config.pool == "mean":
            weights = attention_mask.to(found.last_hidden_state.dtype)[..., None]
            pooled = (found.last_hidden_state * weights).sum(1) / weights.sum(1).clamp_min(1)
        else:
            pooled = found.pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
