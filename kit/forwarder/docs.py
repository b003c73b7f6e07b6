"""The face's document as a page for people: one file, no script, nothing from another host.

The usual page of FastAPI loads its script from a host on the internet, into a page where people
would give their token; inside a network of its own it stays blank.
"""

from collections.abc import Iterator, Mapping
from html import escape

from kit.base import Json

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
h2 { margin: 2.5rem 0 .3rem; padding-top: 1rem; border-top: 1px solid #ddd; font-size: 1.2rem }
h2 b { display: inline-block; min-width: 3.4rem; padding: .1rem .5rem; border-radius: .3rem;
       background: #25567b; color: #fff; text-align: center }
code, pre { font: .9rem/1.5 ui-monospace, monospace }
h2 code { font-size: 1.1rem }
pre { background: #f4f4f4; padding: .6rem .8rem; overflow-x: auto }
table { border-collapse: collapse; margin: .6rem 0; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0;
         border-bottom: 1px solid #eee; overflow-wrap: anywhere }
th { font-weight: 600; color: #666 }
"""
REFUSED = ("400", "401", "411", "413", "422")  # of every request: told once, at the top


def page(document: Json, url: str) -> str:
    """Give the page of an OpenAPI document; `url` is where the examples ask."""
    title = escape(document["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<style>{STYLE}</style><h1>{title}</h1>",
        "<p>Ask for runs, follow them, cancel them, fetch their files. Every request needs your "
        "token, and shows your own runs alone; another one is answered as one that is not there. "
        "In the examples <code>token</code> is a file of mode 600 that holds the line "
        "<code>Authorization: Bearer TOKEN</code>.</p>",
        "<p>Beside the answers below: 400 or 422 for a request that is none (where it is wrong), "
        "401 without a token, 411 without a length, 413 for one that is too large. The same for "
        "programs: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            parts += _operation(document, url, method.upper(), path, one)
    return "\n".join(parts) + "</html>\n"


def _operation(document: Json, url: str, method: str, path: str, one: Json) -> Iterator[str]:
    yield f"<h2><b>{method}</b> <code>{escape(path)}</code></h2>"
    yield f"<p>{escape(one.get('description', ''))}</p>"
    rows = [(each["name"], each["schema"], each.get("required", False), "in the " + each["in"])
            for each in one.get("parameters", [])]  # fmt: skip
    body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        rows += [(*row, "in the body") for row in _fields(document, body)]
    if rows:
        yield "<table><tr><th>name<th>where<th>what it may be<th>else it is</tr>"
        for name, schema, required, where in rows:
            usual = f"<code>{_value(schema.get('default'))}</code>"
            default = "<i>needed</i>" if required else usual
            yield (f"<tr><td><code>{escape(name)}</code><td>{where}<td>{escape(_kind(schema))}"
                   f"<td>{default}</tr>")  # fmt: skip
        yield "</table>"
    yield "<table><tr><th>answer<th>with</tr>"
    for code, answer in sorted(one["responses"].items()):
        if code not in REFUSED:
            yield f"<tr><td>{code}<td>{escape(_shape(document, answer))}</tr>"
    yield "</table>"
    more = " -X POST" if method == "POST" else ""
    more += " --json @request.json" if body else ""
    yield f"<pre>curl -H @token{more} {escape(url + path)}</pre>"


def _fields(document: Json, schema: Json, before: str = "") -> Iterator[tuple[str, Json, bool]]:
    """Give the fields of a request, those of the objects in it too: name, schema, if needed."""
    schema = _resolved(document, schema)
    for name, one in schema["properties"].items():
        inner = _resolved(document, one)
        if "properties" in inner:
            yield from _fields(document, inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", one, name in schema.get("required", ())


def _resolved(document: Json, schema: Json) -> Json:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Json = document["components"]["schemas"][name] if name else schema
    return found


def _kind(schema: Mapping[str, object]) -> str:
    """Say what a value may be."""
    if isinstance(allowed := schema.get("enum"), list):
        return " or ".join(_value(each) for each in allowed)
    words = [str(schema.get("type", "anything"))]
    for key, text in (("minimum", "at least"), ("exclusiveMinimum", "above"),
                      ("maximum", "at most"), ("exclusiveMaximum", "below")):  # fmt: skip
        if key in schema:
            words.append(f"{text} {_value(schema[key])}")
    if "pattern" in schema:
        words.append(f"like {schema['pattern']}")
    return ", ".join(words)


def _value(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"{value:.16g}" if isinstance(
        value, float) else str(value).lower()  # fmt: skip


def _shape(document: Json, answer: Json) -> str:
    """Say what is answered."""
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    many = "a list, each with " if schema.get("type") == "array" else ""
    found = _resolved(document, schema.get("items", schema))
    names = ", ".join(found.get("properties", ()))
    text = str(answer.get("description", ""))
    text = found.get("description", "") if text in ("Successful Response", "") else text
    if names:
        return f"{many}{names}" if text in ("", found.get("description")) else f"{text}: {names}"
    return text or {"string": "the text"}.get(str(found.get("type")), "the file")
