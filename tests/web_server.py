"""A page of NiceGUI behind the gate, for a browser: `python -m tests.web_server PORT [USERS]`.

It prints the address that signs in.
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from nicegui import ui

from lorabench.web.access import Access
from lorabench.web.entrance import entrance
from lorabench.web.gate import Gate


def page(request: Request) -> None:
    """Parts whose scripts and styles the policy must let through."""
    user = request.state.user
    ui.label(f"signed in as {user}")
    answer = ui.label("not clicked")
    ui.button("Click", on_click=lambda: answer.set_text("clicked"), icon="home").classes("p-4 bg-green-500")
    ui.upload(auto_upload=True, on_upload=lambda event: answer.set_text(f"got {event.file.name}"))
    ui.table(rows=[{"a": 1}, {"a": 2}], columns=[{"name": "a", "label": "A", "field": "a", "sortable": True}])
    ui.markdown("**bold** `code`")
    ui.code("print(1)")
    ui.html("<b>html</b>", sanitize=True)
    ui.dark_mode(value=None)
    ui.select(["x", "y"], value="x")
    ui.image("data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==")
    ui.echart({"xAxis": {"type": "category", "data": ["a"]}, "yAxis": {}, "series": [{"type": "bar", "data": [1]}]})
    ui.aggrid({"columnDefs": [{"field": "a"}], "rowData": [{"a": 1}]})
    ui.html('<form method="post" action="/sign-out"><button id="out">Sign out</button></form>', sanitize=False)
    ui.html('<iframe src="/report" title="report"></iframe>', sanitize=False)


def serve(port: int, users: Path | None) -> None:
    access = Access(users)
    app = FastAPI(routes=entrance(access, secure=False))

    @app.get("/report")
    def report() -> object:
        from starlette.responses import HTMLResponse

        policy = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; frame-ancestors 'self'"
        return HTMLResponse("<p id=r>a report</p>", headers={"Content-Security-Policy": policy})

    ui.page("/")(page)
    ui.run_with(app, tailwind=True, show_welcome_message=False)
    gate = Gate(app, access, {f"127.0.0.1:{port}"}, max_body=1 << 20)
    print(f"http://127.0.0.1:{port}/enter?token={access.first_token}", flush=True)
    uvicorn.run(gate, host="127.0.0.1", port=port, server_header=False, access_log=False, log_level="warning")


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
