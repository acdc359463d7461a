"""Celery's application; its address comes in the environment."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.peers.work import hello

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.update(worker_hijack_root_logger=False, task_acks_late=True)  # as ours: not done before it has ended
run = app.task(hello, name="run")
