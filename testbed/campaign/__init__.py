"""The fault campaign: random faults against the real agent between real devices, brokers and disks; the oracle judges.

``python -m testbed.campaign --faults 200 --seed 1 --report docs/reliability.md``. Needs root (mounts, a TUN device),
and takes namespaces of its own for both: nothing of the machine is touched.
"""
