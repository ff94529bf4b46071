"""A model of a cluster that is consolidated: VMs move to few hosts while they have little to do, and to many when they have much.

What is assumed, all of it drawn from one seed:
* HOSTS hosts of 64 cores and 256 GiB, and VMS VMs of 4, 8, 16 or 32 GiB (4, 3, 2, 1 of ten), of which 0.5 to 0.95 holds content.
* Load of a VM, in cores, every 5 minutes: a day's wave, highest at 14:00 give or take 3 h, between a tenth of its peak and its peak (1 to 8 cores), times
  noise that lasts (autoregressive, 0.9 a step), and bursts to the peak: one in 200 steps begins one, of 15 to 60 minutes. One VM in five is busy at night.
* A host is full at 0.8 of its cores, and relieved above 0.9 until it is at 0.7. If all VMs fit into one host less at 0.6, the emptiest host is emptied,
  one a step. Hosts without VMs sleep with their memory on (or off: their images are lost). A VM goes to the fullest host that has room.
* What a VM writes: t hours after its image was left, w * (1 - exp(-t / tau)) of its pages differ from it; w is 0.05 to 0.5, tau 0.5 to 8 h. Its load
  makes its clock run: at its peak twice as fast, idle at a fifth.
* An image takes the content's size of its host's memory: together at most the budget, and never more than running VMs leave free. The one that was left
  first goes first. A migration home costs the pages that differ and 4 bytes a page of table; any other costs all content.
"""

import math
import random
from dataclasses import asdict, dataclass, field

HOSTS, VMS = 24, 240
CORES, MEMORY_GIB = 64.0, 256.0
STEP_H = 5 / 60
FULL, HIGH, RELIEVED, FEWER = 0.8, 0.9, 0.7, 0.6
TABLE_GIB_PER_GIB = 4 / 4096


@dataclass
class Vm:
    number: int
    memory: float
    content: float
    peak: float
    wave_at: float
    rewritten: float  # w
    tau: float
    host: int = -1
    load: float = 0.0
    clock: float = 0.0  # hours, as its writing goes
    noise: float = 0.0
    burst_until: float = 0.0

    def step(self, hour, rng):
        wave = 0.55 + 0.45 * math.cos((hour - self.wave_at) / 24 * 2 * math.pi)
        self.noise = 0.9 * self.noise + rng.gauss(0, 0.08)
        if rng.random() < 1 / 200:
            self.burst_until = hour + rng.uniform(0.25, 1.0)
        share = 1.0 if hour < self.burst_until else min(1.0, max(0.02, wave * math.exp(self.noise)))
        self.load = share * self.peak
        self.clock += STEP_H * (0.2 + 1.8 * share)

    def differing(self, since):
        return self.rewritten * (1 - math.exp(-(self.clock - since) / self.tau))


@dataclass
class Host:
    number: int
    vms: dict = field(default_factory=dict)
    images: dict = field(default_factory=dict)  # {VM's number: (its clock then, GiB)}, in the order in which they were left

    def load(self):
        return sum(vm.load for vm in self.vms.values())

    def memory(self):
        return sum(vm.memory for vm in self.vms.values())

    def room_for(self, vm, to=FULL):
        return self.load() + vm.load <= to * CORES and self.memory() + vm.memory <= MEMORY_GIB

    def keep_within(self, budget_gib):
        allowed = min(budget_gib, MEMORY_GIB - self.memory())
        while self.images and sum(size for _, size in self.images.values()) > allowed + 1e-9:
            del self.images[next(iter(self.images))]


@dataclass
class Counts:
    moves: int = 0
    returns: int = 0  # to a host with an image
    been_there: int = 0  # to a host where the VM was before, image or not
    unmet: int = 0  # a host was too full and no other had room
    sent_gib: float = 0.0
    whole_gib: float = 0.0  # what would be sent without images
    awake_hours: float = 0.0


class Cluster:
    """`aware`: of the hosts that are awake and have room, one with an image of the VM is preferred. `asleep_keep`: hosts without VMs keep their images."""

    def __init__(self, seed, budget, aware, asleep_keep=True, hosts=HOSTS, vms=VMS):
        self.rng = random.Random(seed)
        self.hosts = [Host(number) for number in range(hosts)]
        self.vms = [self._vm(number) for number in range(vms)]
        self.budget_gib, self.aware, self.asleep_keep = budget * MEMORY_GIB, aware, asleep_keep
        self.counts = Counts()
        self.visited = {vm.number: set() for vm in self.vms}
        for vm in self.vms:
            vm.step(0, self.rng)
            self._enter(vm, self._choose(vm, self.hosts) or min(self.hosts, key=Host.memory))

    def _vm(self, number):
        rng = self.rng
        memory = rng.choice([4] * 4 + [8] * 3 + [16] * 2 + [32])
        at_night = rng.random() < 0.2
        return Vm(number, memory, memory * rng.uniform(0.5, 0.95), rng.uniform(1, 8), (2 if at_night else 14) + rng.uniform(-3, 3),
                  rng.uniform(0.05, 0.5), rng.uniform(0.5, 8), noise=rng.gauss(0, 0.2))

    def _choose(self, vm, hosts, to=FULL):
        """The fullest one with room that is awake, else one that sleeps, else None."""
        fitting = [host for host in hosts if host.room_for(vm, to)]
        awake = [host for host in fitting if host.vms] or fitting
        if self.aware:
            awake = [host for host in awake if vm.number in host.images] or awake
        return max(awake, key=lambda host: (host.load(), -host.number), default=None)

    def _enter(self, vm, host):
        host.vms[vm.number] = vm
        vm.host = host.number
        self.visited[vm.number].add(host.number)
        host.keep_within(self.budget_gib)

    def move(self, vm, host):
        source = self.hosts[vm.host]
        image = host.images.pop(vm.number, None)
        table = vm.memory * TABLE_GIB_PER_GIB
        counts = self.counts
        counts.moves += 1
        counts.whole_gib += vm.content
        counts.been_there += host.number in self.visited[vm.number]
        counts.returns += image is not None
        counts.sent_gib += vm.content * vm.differing(image[0]) + table if image else vm.content
        del source.vms[vm.number]
        source.images.pop(vm.number, None)
        source.images[vm.number] = (vm.clock, vm.content)
        source.keep_within(self.budget_gib)
        self._enter(vm, host)
        if not source.vms and not self.asleep_keep:
            source.images.clear()

    def _relieve(self):
        for host in self.hosts:
            if host.load() <= HIGH * CORES:
                continue
            others = [other for other in self.hosts if other is not host]
            while host.load() > RELIEVED * CORES and host.vms:
                vm = max(host.vms.values(), key=lambda vm: (vm.load / vm.memory, vm.number))  # most load for its bytes
                target = self._choose(vm, others)
                if target is None:
                    self.counts.unmet += 1
                    break
                self.move(vm, target)

    def _empty_one(self):
        awake = [host for host in self.hosts if host.vms]
        if len(awake) < 2 or sum(host.load() for host in awake) > FEWER * CORES * (len(awake) - 1):
            return
        least = min(awake, key=lambda host: (host.load(), host.number))
        others = [host for host in awake if host is not least]
        for vm in sorted(least.vms.values(), key=lambda vm: (-vm.memory, vm.number)):
            target = self._choose(vm, others, RELIEVED)
            if target is None:
                return  # it does not work out: what has moved stays
            self.move(vm, target)

    def run(self, hours, warm_up_hours=0):
        """Counts of these hours, after others that nobody counts: in the beginning no host has an image of anything."""
        for step in range(1, round((warm_up_hours + hours) / STEP_H) + 1):
            if step == round(warm_up_hours / STEP_H) + 1:
                self.counts = Counts()
            for vm in self.vms:
                vm.step(step * STEP_H, self.rng)
            self._relieve()
            self._empty_one()
            self.counts.awake_hours += STEP_H * sum(1 for host in self.hosts if host.vms)
        counts = self.counts
        return {**asdict(counts), "returns_share": counts.returns / max(1, counts.moves), "been_there_share": counts.been_there / max(1, counts.moves),
                "saved_share": 1 - counts.sent_gib / counts.whole_gib if counts.whole_gib else 0.0, "awake_hosts": counts.awake_hours / hours}
