"""Commands that register tasks and change their supports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fewseg.cli.marks import annotation_of, support_of
from fewseg.cli.session import JsonFlag, Session, stdout
from fewseg.cli.task_file import TaskFile, duration_of, fusion_of, read_task_file
from fewseg.results import Task, TaskSupport

#: A leave-one-out agreement below it deserves a look at the annotation.
_DOUBTFUL = 0.5

TaskName = Annotated[str, typer.Argument(help="Task id, or tenants/TENANT/tasks/TASK.")]
Supports = Annotated[
    list[str] | None,
    typer.Option("--support", help="'IMAGE MARK... [id=ID]'; again for more."),
]
File = Annotated[Path | None, typer.Option("--task", help="JSON file that describes the task.")]
Etag = Annotated[str, typer.Option(help="Change only this revision of the task.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (register, add, annotate, remove, delete):
        app.command()(command)
    app.command("task")(show)
    app.command("tasks")(show_all)


def register(
    context: typer.Context,
    task_id: Annotated[str, typer.Argument(help="Name of the new task.")] = "",
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A class; again for more.")
    ] = None,
    support: Supports = None,
    task: File = None,
    model: Annotated[str, typer.Option(help="Alias of a model; else the server's default.")] = "",
    display_name: Annotated[str, typer.Option(help="Free text.")] = "",
    ttl: Annotated[str, typer.Option(help="The task ends by itself after 90s, 2h, 7d.")] = "",
    fusion: Annotated[
        str,
        typer.Option(help="How shots become one mask: merged (the default) or cross-guided."),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Registers a task with its first supports.

    Marks: mask=FILE, mask=FILE:VALUE=CLASS,..., points=CLASS:x,y+x,y[@RADIUS],
    scribble=CLASS:x,y+x,y[@WIDTH], polygon=CLASS:x,y+x,y+x,y, box=CLASS:x_min,y_min,x_max,y_max.
    The class "background" makes a negative mark.
    """
    session = Session.of(context, json)
    file = _task_file(task)
    supports = [*file.supports, *map(support_of, support or ())]
    named = [*file.classes, *(classes or ())]
    if not named or not supports:
        raise typer.BadParameter("Give --class and --support, or --task FILE.")
    with session.client() as client:
        registered = client.register(
            named,
            supports,
            task_id=task_id or file.task_id,
            model=model or file.model,
            display_name=display_name or file.display_name,
            ttl=duration_of(ttl) if ttl else file.ttl,
            fusion=fusion_of(fusion) if fusion else file.fusion,
        )
    session.tell(registered, _changed("Registered", registered))


def add(
    context: typer.Context,
    task: TaskName,
    support: Supports = None,
    file: Annotated[
        Path | None, typer.Option("--task", help="JSON file whose supports are added.")
    ] = None,
    etag: Etag = "",
    json: JsonFlag = False,
) -> None:
    """Adds supports to a task, any number of them."""
    session = Session.of(context, json)
    supports = [*_task_file(file).supports, *map(support_of, support or ())]
    if not supports:
        raise typer.BadParameter("Give --support or --task FILE.")
    with session.client() as client:
        # The classes of the task tell what a mask without classes stands for.
        known = client.get_task(task)
        bar, line = session.progress("Adding supports", len(supports))
        with bar:
            changed = client.add_supports(
                known,
                supports,
                etag=etag,
                progress=lambda count: bar.update(line, completed=count),
            )
    session.tell(changed, _changed(f"Added {len(supports)} to", changed))


def annotate(
    context: typer.Context,
    task: TaskName,
    support_id: Annotated[str, typer.Argument(help="Which support.")],
    marks: Annotated[list[str], typer.Argument(help="MARK..., as for register.")],
    extend: Annotated[
        bool, typer.Option("--extend", help="Paint the marks over those that are there.")
    ] = False,
    etag: Etag = "",
    json: JsonFlag = False,
) -> None:
    """Gives a support another annotation, or further marks."""
    session = Session.of(context, json)
    annotation = annotation_of(marks)
    with session.client() as client:
        known = client.get_task(task)
        changed = client.annotate(known, support_id, annotation, extend=extend, etag=etag)
    session.tell(changed, _changed("Annotated", changed))


def remove(
    context: typer.Context,
    task: TaskName,
    support_id: Annotated[str, typer.Argument(help="Which support.")],
    etag: Etag = "",
    json: JsonFlag = False,
) -> None:
    """Removes a support of a task."""
    session = Session.of(context, json)
    with session.client() as client:
        changed = client.remove_support(task, support_id, etag=etag)
    session.tell(changed, _changed(f"Removed {support_id} from", changed))


def delete(context: typer.Context, task: TaskName, etag: Etag = "", json: JsonFlag = False) -> None:
    """Deletes a task."""
    session = Session.of(context, json)
    with session.client() as client:
        client.delete_task(task, etag=etag)
    session.tell({"deleted": task}, f"Deleted {task}.")


def show(context: typer.Context, task: TaskName, json: JsonFlag = False) -> None:
    """Shows a task and its supports."""
    session = Session.of(context, json)
    with session.client() as client:
        found = client.get_task(task)
    session.tell(found, Group(_facts(found), "", _support_table(found.supports)))


def show_all(context: typer.Context, json: JsonFlag = False) -> None:
    """Lists the tasks."""
    session = Session.of(context, json)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("TASK", "MODEL", "CLASSES", "SUPPORTS", "UPDATED", "ENDS"):
        table.add_column(heading)
    with session.client() as client:
        for task in client.tasks():
            if session.json:
                session.tell(task, "")
                continue
            table.add_row(
                task.id,
                task.model,
                ", ".join(task.classes),
                str(task.support_count),
                f"{task.update_time:%Y-%m-%d %H:%M}",
                "never" if task.expire_time is None else f"{task.expire_time:%Y-%m-%d %H:%M}",
            )
    if not session.json:
        stdout().print(table if table.row_count else "There are no tasks.")


def _task_file(path: Path | None) -> TaskFile:
    return TaskFile("", (), "", "", None, "merged", ()) if path is None else read_task_file(path)


def _changed(what: str, task: Task) -> RenderableType:
    seconds = task.timings.get("total", 0.0)
    headline = Text.assemble(
        f"{what} ",
        (task.name, "bold"),
        f" ({task.support_count} support{'' if task.support_count == 1 else 's'},"
        f" {task.family or task.model}) in {seconds:.2f} s",
    )
    parts: list[RenderableType] = [headline]
    if task.background_inferred:
        parts.append(
            Text("No mark labels background: the surroundings of the marks stand in for it.", "dim")
        )
    return Group(*parts, "", _support_table(task.supports))


def _facts(task: Task) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in (
        ("name", task.name),
        ("display name", task.display_name),
        ("model", f"{task.model} ({task.family})"),
        ("classes", ", ".join(f"{i} {name}" for i, name in enumerate(task.classes, 1))),
        ("etag", task.etag),
        ("created", f"{task.create_time:%Y-%m-%d %H:%M:%S} UTC"),
        ("updated", f"{task.update_time:%Y-%m-%d %H:%M:%S} UTC"),
        ("ends", "never" if task.expire_time is None else str(task.expire_time)),
        ("background", "inferred" if task.background_inferred else "given"),
        ("shots", task.fusion.replace("_", "-")),
        ("guidance", f"{task.guidance_bytes:,} bytes" if task.guidance_bytes else ""),
    ):
        if value:
            table.add_row(name, value)
    return table


def _support_table(supports: tuple[TaskSupport, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("SUPPORT", "SIZE", "SHOT OF", "MARKS", "FOUND BY THE OTHERS (IoU)"):
        table.add_column(heading)
    for support in supports:
        agreement = Text(", ").join(
            Text(f"{name} {iou:.2f}", "yellow" if iou < _DOUBTFUL else "green")
            for name, iou in support.leave_one_out.items()
        )
        table.add_row(
            support.id,
            f"{support.height}x{support.width}",
            Text(", ").join(
                Text(f"{name} (no pixel)", "yellow")
                if name in support.classes_without_pixels
                else Text(name)
                for name in support.shot_classes
            ),
            str(support.mark_count),
            agreement,
        )
    return table
