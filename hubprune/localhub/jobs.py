"""Jobs over HTTP: submitting, looking, following the log as server-sent events, cancelling.

A Hub that is not served with jobs answers as the public one does where nobody pays for them: 402.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from hubprune.localhub import render
from hubprune.localhub.jobspec import read_spec
from hubprune.localhub.runner import Job, Runner
from hubprune.localhub.settings import JOB_HARDWARE, hardware_list
from hubprune.localhub.store import stamp
from hubprune.localhub.web import ApiError, Call, json_page, number, route

POLL = 0.1
"""Seconds between looks for new lines of a log that is followed."""
KEEP_ALIVE = 15.0
"""Seconds after which a silent log shows that it is alive."""


def hardware(call: Call) -> Response:
    """GET /api/jobs/hardware."""
    return JSONResponse(hardware_list(JOB_HARDWARE))


def submit(call: Call) -> Response:
    """POST /api/jobs/{ns}: start a job."""
    runner, namespace = _runner(call), call.param("ns")
    job = runner.submit(namespace, call.signed_in(), read_spec(call.json()), call.url())
    return JSONResponse(describe(call, job))


def jobs(call: Call) -> Response:
    """GET /api/jobs/{ns}: the newest first."""
    stages, labels = set(call.queries("stage")), call.queries("label")
    found = [
        describe(call, job)
        for job in _runner(call).list(call.param("ns"))
        if (not stages or job.stage in stages)
        and all(label in [f"{key}={value}" for key, value in job.spec.labels.items()] for label in labels)
    ]
    return json_page(call, found)


def inspect(call: Call) -> Response:
    """GET /api/jobs/{ns}/{job}."""
    return JSONResponse(describe(call, _job(call)))


def cancel(call: Call) -> Response:
    """POST /api/jobs/{ns}/{job}/cancel; nothing happens to one that has ended."""
    job = _job(call)
    job.cancel()
    return JSONResponse(describe(call, job))


def logs(call: Call) -> Response:
    """GET /api/jobs/{ns}/{job}/logs: the log so far, or its last lines, then each new one until the job ends."""
    job, tail = _job(call), call.query("tail")
    start = 0 if tail is None else max(0, len(job.log) - number(tail, 0))
    return StreamingResponse(
        _events(job, start), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(job: Job, start: int) -> AsyncIterator[str]:
    spoke = time.monotonic()
    while True:
        over = job.over  # looked at first: what is written before the end is sent before it
        for at, text in job.log[start:]:
            yield f"data: {json.dumps({'data': text, 'timestamp': at})}\n\n"
            start, spoke = start + 1, time.monotonic()
        if over:
            return
        if time.monotonic() - spoke > KEEP_ALIVE:
            yield ": keep-alive\n\n"
            spoke = time.monotonic()
        await asyncio.sleep(POLL)


def page(call: Call) -> Response:
    """GET /jobs/{ns}/{job}: what it runs, how it stands, and its log so far."""
    job = _job(call)
    facts = describe(call, job)
    return render.page(call.request, "job.html", call.user, job=job, facts=facts, command=shlex.join(job.spec.command))


def _runner(call: Call) -> Runner:
    """Return the jobs of the Hub, if the caller may have some in the namespace of the path."""
    user, namespace = call.signed_in("jobs"), call.param("ns")
    if not call.hub.users.may_write(user, namespace):
        raise ApiError(403, f"{user} may not run or see jobs of {namespace}; use a token of {namespace}")
    if call.hub.runner is None:
        raise ApiError(402, "this Hub runs no jobs; serve it with --allow-jobs")
    return call.hub.runner


def _job(call: Call) -> Job:
    job = _runner(call).find(call.param("ns"), call.param("job"))
    if job is None:
        raise ApiError(
            404, f"{call.param('ns')} has no job {call.param('job')!r:.60}, or it went when the Hub stopped"
        )
    return job


def describe(call: Call, job: Job) -> dict[str, Any]:
    """Return a job as clients read it; of its secrets only the names."""
    spec, until = job.spec, job.finished or time.time()
    begun = job.started or until
    return {
        "id": job.id,
        "createdAt": stamp(job.created),
        "startedAt": stamp(job.started) if job.started else None,
        "finishedAt": stamp(job.finished) if job.finished else None,
        "dockerImage": spec.image,
        "command": list(spec.command),
        "arguments": [],
        "environment": dict(spec.environment),
        "secrets": dict.fromkeys(spec.secrets, "***"),
        "flavor": spec.flavor,
        "timeout": spec.timeout,
        "labels": dict(spec.labels),
        "status": {"stage": job.stage, "message": job.message},
        "durations": {
            "schedulingSecs": int(begun - job.created),
            "runningSecs": int(until - begun),
            "totalSecs": int(until - job.created),
        },
        "owner": {
            "id": job.namespace,
            "name": job.namespace,
            "type": "org" if job.namespace in call.hub.users.orgs else "user",
        },
        "initiator": {"type": "user", "id": job.user, "name": job.user},
    }


_JOB = "/api/jobs/{ns}/{job}"
routes = [
    route("/api/jobs/hardware", hardware),
    route("/api/jobs/{ns}", jobs),
    route("/api/jobs/{ns}", submit, "POST"),
    route(_JOB, inspect),
    route(f"{_JOB}/logs", logs),
    route(f"{_JOB}/cancel", cancel, "POST"),
    route("/jobs/{ns}/{job}", page, page=True),
]
