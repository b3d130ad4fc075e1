"""Modules whose submodules, parameters and flags change."""

import torch
import torchmetrics
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from tests.support.odd_modules.base import FEATURES, Odd, flat, kind


@kind("module hidden in a list, stepped in place")
class HiddenTeacher(Odd):
    def prepare(self):
        self.teachers = [nn.Linear(FEATURES, FEATURES)]
        self.teachers[0].requires_grad_(False)

    def step_teacher(self, teacher):
        teacher.weight.mul_(0.9).add_(0.1)

    def odd(self, inputs):
        with torch.no_grad():
            self.step_teacher(self.teachers[0])
            return self.teachers[0](inputs)

    def state(self):
        return flat(self.teachers[0].weight)


@kind("module hidden in a list, stepped through .data")
class HiddenTeacherData(HiddenTeacher):
    def step_teacher(self, teacher):
        teacher.weight.data.mul_(0.9).add_(0.1)


@kind("module hidden in a list, whose parameter is replaced")
class HiddenTeacherReplaced(HiddenTeacher):
    def step_teacher(self, teacher):
        teacher.weight = nn.Parameter(teacher.weight * 0.9, requires_grad=False)


@kind("teacher, in evaluation mode and stepped through .data")
class Teacher(HiddenTeacherData):
    def prepare(self):
        super().prepare()
        self.teacher = self.teachers[0].eval()


@kind("BatchNorm hidden in __dict__")
class HiddenNorm(Odd):
    def prepare(self):
        self.__dict__["norm"] = nn.BatchNorm1d(FEATURES)

    def odd(self, inputs):
        self.norm(inputs)
        return self.norm.running_mean.clone()

    def state(self):
        return flat(self.norm.running_mean), flat(self.norm.num_batches_tracked)


@kind("BatchNorm2d hidden in a tuple")
class HiddenNorm2d(HiddenNorm):
    def prepare(self):
        self.layers = (nn.BatchNorm2d(FEATURES),)

    @property
    def norm(self):
        return self.layers[0]

    def odd(self, inputs):
        self.norm(inputs.view(-1, FEATURES, 1, 1))
        return self.norm.running_mean.clone()


@kind("running statistics of the module's own")
class OwnStatistics(Odd):
    def prepare(self):
        self.mean, self.variance = torch.zeros(FEATURES), torch.ones(FEATURES)

    def odd(self, inputs):
        nn.functional.batch_norm(inputs.view(-1, FEATURES, 1, 1), self.mean, self.variance, training=True)
        return self.mean.clone()

    def state(self):
        return flat([self.mean, self.variance])


@kind("AveragedModel")
class Averaged(Odd):
    hidden = False

    def prepare(self):
        average = AveragedModel(self.net, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
        if self.hidden:
            self.averages = [average]
        else:
            self.average = average

    def held(self):
        return self.averages[0] if self.hidden else self.average

    def odd(self, inputs):
        with torch.no_grad():
            self.held().update_parameters(self.net)
            return self.held()(inputs).mean() + self.held().n_averaged

    def state(self):
        return flat(dict(self.held().state_dict()))


@kind("AveragedModel hidden in a list")
class HiddenAverage(Averaged):
    hidden = True


@kind("trained parameter that is replaced")
class ReplacedParameter(Odd):
    def odd(self, inputs):
        self.net.weight = nn.Parameter(self.net.weight.detach() * 0.99)
        return 0.0

    def state(self):
        return flat(self.net.weight)


@kind("trained parameter that gets another storage")
class MovedParameter(Odd):
    def odd(self, inputs):
        self.net.weight.data = self.net.weight.data * 0.99
        return 0.0

    def state(self):
        return flat(self.net.weight)


class Rescaled(Odd):
    """Scales its trained weights in the step: the losses of a group of batches are all of the same point nevertheless."""

    def state(self):
        return flat(self.net.weight)


@kind("trained weights that are scaled")
class RescaledInPlace(Rescaled):
    def odd(self, inputs):
        with torch.no_grad():
            self.net.weight.mul_(0.9)
        return 0.0


@kind("trained weights that are clipped through .data")
class Clipped(Rescaled):
    def odd(self, inputs):
        self.net.weight.data.clamp_(-0.2, 0.2)
        return 0.0


@kind("submodule that is replaced")
class ReplacedModule(Odd):
    def prepare(self):
        self.scale = nn.Linear(1, 1).requires_grad_(False)

    def odd(self, inputs):
        other = nn.Linear(1, 1).requires_grad_(False)
        other.weight.data.copy_(self.scale.weight + 1)
        self.scale = other
        return float(other.weight)

    def state(self):
        return flat(self.scale.weight)


@kind("submodule and buffer that are made late")
class LateModule(Odd):
    def odd(self, inputs):
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(FEATURES)
            self.register_buffer("late", torch.zeros(1))
        self.norm(inputs)
        self.late += 1
        return self.norm.running_mean.clone() + self.late

    def state(self):
        return flat([self.norm.running_mean, self.late])


@kind("flags of parameters and modules")
class Flags(Odd):
    def prepare(self):
        self.dropout = nn.Dropout(0.5)
        self.extra = nn.Parameter(torch.zeros(1))

    def odd(self, inputs):
        value = 1.0 * self.extra.requires_grad + self.dropout(inputs).detach()
        self.extra.requires_grad_(not self.extra.requires_grad)
        self.dropout.train(not self.dropout.training)
        return value

    def state(self):
        return self.extra.requires_grad, self.dropout.training


@kind("gradient that is set by hand")
class Gradient(Odd):
    def prepare(self):
        self.extra = nn.Parameter(torch.zeros(1))

    def odd(self, inputs):
        value = 0.0 if self.extra.grad is None else float(self.extra.grad)
        self.extra.grad = torch.full((1,), value + 1)
        return value

    def state(self):
        return flat(self.extra.grad)


@kind("spectral norm, which iterates in buffers")
class Spectral(Odd):
    def prepare(self):
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, FEATURES)).requires_grad_(False)

    def odd(self, inputs):
        return self.layer(inputs)

    def state(self):
        return flat(dict(self.layer.state_dict()))


@kind("torchmetrics, hidden in a dict")
class HiddenMetric(Odd):
    def prepare(self):
        self.metrics = {"mean": torchmetrics.MeanMetric(), "all": torchmetrics.CatMetric()}

    def odd(self, inputs):
        for metric in self.metrics.values():
            metric.update(inputs.mean())
        return float(self.metrics["mean"].weight) + len(self.metrics["all"].value)

    def state(self):
        return flat([metric.compute() for metric in self.metrics.values()]), self.metrics["mean"]._update_count


@kind("class of a submodule that is exchanged to and fro")
class ExchangedClass(Odd):
    def prepare(self):
        self.activation = nn.Sigmoid()

    def odd(self, inputs):
        value = float(self.activation(inputs).mean())
        self.activation.__class__ = nn.Tanh if type(self.activation) is nn.Sigmoid else nn.Sigmoid
        return value

    def state(self):
        return type(self.activation).__name__


@kind("lazy layer that is not trained")
class LazyLayer(Odd):
    def prepare(self):
        self.layer = nn.LazyLinear(FEATURES)

    def held(self):
        return self.layer

    def odd(self, inputs):
        with torch.no_grad():
            return self.held()(inputs)

    def state(self):
        return flat(self.held().weight)


@kind("lazy layer hidden in a list")
class HiddenLazyLayer(LazyLayer):
    def prepare(self):
        self.layers = [nn.LazyLinear(FEATURES)]

    def held(self):
        return self.layers[0]


@kind("parameter list and module dict that grow")
class Growing(Odd):
    def prepare(self):
        self.parameters_held, self.modules_held = nn.ParameterList(), nn.ModuleDict()

    def odd(self, inputs):
        self.parameters_held.append(nn.Parameter(torch.ones(1), requires_grad=False))
        self.modules_held[str(len(self.modules_held))] = nn.Identity()
        return len(self.parameters_held) + len(self.modules_held)

    def state(self):
        return len(self.parameters_held), list(self.modules_held)
