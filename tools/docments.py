"""An extension for Griffe: comments behind parameters, as fastcore's docments writes them, become documentation.

    def f(
        x: np.ndarray,   # float32 [n]: what it is
    ): ...
"""

import re
from textwrap import dedent

from griffe import DocstringParameter, DocstringSectionParameters, DocstringSectionText, Extension

PARAMETER = re.compile(r"^\s*\*{0,2}(\w+)\s*(?::[^#]*|=[^#]*)?,?\s*#\s*(.+)$")
FURTHER = re.compile(r"^\s*#\s*(.+)$")


def comments(lines):
    """Parameter → its comment, from the lines of a signature; a comment may go on over further lines."""
    found, name = {}, None
    for line in lines:
        if parameter := PARAMETER.match(line):
            name = parameter[1]
            found[name] = parameter[2].strip()
        elif name and (further := FURTHER.match(line)):
            found[name] += " " + further[1].strip()
        else:
            name = None
    return found


def signature_lines(function):
    """The lines of a function's source up to the colon that ends its signature."""
    depth, lines = 0, []
    for line in dedent(function.source).splitlines():
        code = line.split("#")[0]
        lines.append(line)
        depth += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        if depth == 0 and code.rstrip().endswith(":"):
            break
    return lines


class Docments(Extension):
    """Adds a table of parameters to functions, and one of fields to classes, where comments document them."""

    def on_function(self, *, func, **kwargs):
        if not (func.docstring and func.source):
            return
        found = comments(signature_lines(func))
        add_table(func, [(p.name, str(p.annotation or ""), found[p.name]) for p in func.parameters if p.name in found])

    def on_class(self, *, cls, **kwargs):
        if not (cls.docstring and cls.source):
            return
        found = comments(cls.source.splitlines())
        rows = []
        for name, member in cls.members.items():
            if name in found and member.is_attribute:
                rows.append((name, str(member.annotation or ""), found[name]))
        add_table(cls, rows)


def add_table(thing, rows):
    if not rows:
        return
    text = DocstringSectionText(thing.docstring.value)
    table = DocstringSectionParameters([DocstringParameter(n, annotation=a, description=d) for n, a, d in rows])
    if thing.is_class:
        table.title = "Fields:"
    thing.docstring.__dict__["parsed"] = [text, table]
