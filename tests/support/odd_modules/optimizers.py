"""Modules that step optimizers, schedulers and scalers themselves."""

import torch
from torch import nn

from tests.support.odd_modules.base import FEATURES, Odd, flat, kind


@kind("optimizer of the module's own, with momentum")
class OwnOptimizer(Odd):
    def prepare(self):
        self.centre = nn.Parameter(torch.zeros(FEATURES))
        self.optimizer = torch.optim.Adam([self.centre], lr=0.1)

    def odd(self, inputs):
        self.centre.grad = self.centre.detach() - inputs.mean(0).detach() + 1
        self.optimizer.step()
        return self.centre.detach().clone()

    def state(self):
        return flat(self.centre), flat(self.optimizer.state_dict())


class Schedules(Odd):
    def odd(self, inputs):
        self.move()
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def state(self):
        return self.trainer.optimizers[0].param_groups[0]["lr"]


@kind("scheduler of the module's own on the Trainer's optimizer")
class OwnScheduler(Schedules):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return optimizer

    def move(self):
        self.scheduler.step()

    def on_before_optimizer_step(self, optimizer):
        pass

    def state(self):
        return super().state(), self.scheduler.state_dict()

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 0:
            self.trainer.optimizers[0]._opt_called = True  # else the scheduler warns of its order
        return super().training_step(batch, batch_idx)


@kind("scheduler of the Trainer's")
class TrainersScheduler(Schedules):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) for gamma in (0.9, 0.8)]
        return [optimizer], [torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[4])]

    def move(self):
        self.trainer.optimizers[0]._opt_called = True
        self.lr_schedulers().step()

    def state(self):
        scheduler = self.lr_schedulers()
        return super().state(), scheduler.last_epoch, scheduler._schedulers[0].last_epoch, scheduler._schedulers[1].last_epoch


@kind("learning rate that is changed in the step")
class OwnRate(Schedules):
    def move(self):
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.99


@kind("state of the Trainer's optimizer")
class OptimizerState(Odd):
    def odd(self, inputs):
        state = self.trainer.optimizers[0].state[self.net.weight]
        if "momentum_buffer" in state:
            state["momentum_buffer"].mul_(0.5)
        state["calls"] = state.get("calls", 0) + 1
        return float(state["calls"])

    def state(self):
        return flat(dict(self.trainer.optimizers[0].state[self.net.weight]))


@kind("GradScaler")
class Scaler(Odd):
    def prepare(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def odd(self, inputs):
        scale = self.scaler.get_scale()
        self.scaler.scale(torch.zeros(()))
        self.scaler.update(scale * 1.5)
        return scale

    def state(self):
        return self.scaler.get_scale()


@kind("parameter group that is added")
class AddedGroup(Odd):
    def odd(self, inputs):
        optimizer = self.trainer.optimizers[0]
        if len(optimizer.param_groups) < 3:
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        return len(optimizer.param_groups)

    def state(self):
        return len(self.trainer.optimizers[0].param_groups)


@kind("ReduceLROnPlateau of the module's own")
class Plateau(Schedules):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return optimizer

    def move(self):
        self.scheduler.step(1.0)

    def state(self):
        return super().state(), self.scheduler.state_dict()
