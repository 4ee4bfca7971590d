"""Takes channels out of the tensors of a network: a smaller copy, in which what was shared is still shared."""

import copy

import torch
from torch import Tensor, nn

from prunelab.channels.names import Layer, Trace, head_attributes
from prunelab.channels.prefix import ordinary
from prunelab.models.layers import PadChannels, Select


@torch.no_grad()
def cut(model: nn.Module, traced: Trace, gone: set[int]) -> nn.Module:
    """Copies a network without some channels, whether or not what is left can run.

    Raises:
        ValueError: Groups of a convolution left unequal.
    """
    stays = traced.staying(gone)
    kept = {
        name: tuple(stays[names].nonzero().flatten().tolist() for names in (layer.reads, layer.writes))
        for name, layer in traced.layers.items()
    }
    smaller, own = {}, {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, axes in traced.axes.items():
        tensor, layer = own[name], name.rpartition(".")[0]
        if layer in kept and traced.layers[layer].is_grouped and name.endswith("weight"):
            new = _cut_groups(layer, tensor, traced.layers[layer].module.groups, *kept[layer])
        elif layer in kept and isinstance(traced.layers[layer].module, Select):
            reads, writes = kept[layer]
            new = tensor.new_tensor([reads.index(index) for index in tensor[writes].tolist()])
        else:
            new = tensor
            for axis, names in enumerate(axes):
                if not stays[names].all():
                    new = new.index_select(axis, stays[names].nonzero().flatten().to(tensor.device))
        if new is not tensor:
            smaller[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    copied = ordinary(copy.deepcopy(model, smaller))
    for name, (reads, writes) in kept.items():
        _resize(copied.get_submodule(name), traced.layers[name], reads, writes)
    for name, heads in traced.attentions.items():
        module = copied.get_submodule(name)
        for attribute in head_attributes(module):
            setattr(module, attribute, getattr(module, attribute) * int(stays[heads].sum()) // len(heads))
    for module in copied.modules():
        if isinstance(module, nn.PReLU):
            module.num_parameters = len(module.weight)
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
            module.num_features = len(module.weight)
    return copied


def _cut_groups(name: str, weight: Tensor, n_groups: int, reads: list[int], writes: list[int]) -> Tensor:
    """Cuts a convolution whose groups each read channels of their own; groups without any go as a whole."""
    n_in, n_out = weight.shape[1], len(weight) // n_groups
    by_group = [
        (
            [read % n_in for read in reads if read // n_in == group],
            [write for write in writes if write // n_out == group],
        )
        for group in sorted({read // n_in for read in reads} | {write // n_out for write in writes})
    ]
    if len({(len(inputs), len(outputs)) for inputs, outputs in by_group}) > 1 or not all(by_group[0]):
        raise ValueError(
            f"grouped convolution {name!r} must keep as many channels in each group; it would read"
            f" {[len(inputs) for inputs, _ in by_group]} and write {[len(outputs) for _, outputs in by_group]}"
        )
    return torch.cat([weight[outputs][:, inputs] for inputs, outputs in by_group])


def _resize(module: nn.Module, layer: Layer, reads: list[int], writes: list[int]) -> None:
    """Tells a layer how large it is now."""
    if isinstance(module, PadChannels):
        module.n_new = len(writes)
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = len(reads), len(writes)
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.in_channels, module.out_channels = len(reads), len(writes)
        if layer.is_depthwise or layer.is_grouped:
            module.groups = len(reads) // module.weight.shape[1]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(writes) // module.num_channels
        module.num_channels = len(writes)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(writes)
