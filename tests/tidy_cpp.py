"""Just enough C++ for tests/tidy.py: code without comments and strings, and how long functions are."""

import re

TOKEN = re.compile(
    r"""//[^\n]*                                   # comment to the end of the line
      | /\*.*?\*/                                  # block comment
      | R"(?P<mark>[^()\s\\]*)\(.*?\)(?P=mark)"    # raw string
      | "(?:\\.|[^"\\\n])*"                        # string
      | (?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'        # character, not the separator of 1'000
    """,
    re.X | re.S,
)
TYPE_OR_NAMESPACE = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b")


def blank_comments_and_strings(text: str) -> str:
    """`text` with comments, strings and characters as spaces; every line keeps its place."""
    return TOKEN.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def function_name(head: str) -> str:
    match = re.search(r"([\w:~]+|operator\s*\S+?)\s*\(", head)
    return match.group(1) if match else "?"


def long_functions(code: str, limit: int) -> list[tuple[int, int, str]]:
    """(line, length, name) of each function of more than `limit` lines in blanked `code`.

    A brace opens a function when only namespaces and types enclose it and the text since the last
    statement has a parenthesis and does not begin a type.
    """
    found = []
    inside: list[str] = []  # kind of each open brace: "scope", "function", "other"
    head_start, function_start, name = 0, 0, ""
    for match in re.finditer(r"[{};]", code):
        head = re.sub(r"^\s*#[^\n]*", "", code[head_start : match.start()], flags=re.M)
        if match.group() == "{":
            if any(kind != "scope" for kind in inside):
                inside.append("other")
            elif "(" in head and not TYPE_OR_NAMESPACE.match(head.strip()):
                inside.append("function")
                function_start, name = match.start() - len(head.lstrip()), function_name(head)
            else:
                inside.append("scope" if TYPE_OR_NAMESPACE.search(head) else "other")
        elif match.group() == "}" and inside and inside.pop() == "function":
            length = code.count("\n", function_start, match.end()) + 1
            if length > limit:
                found.append((code.count("\n", 0, function_start) + 1, length, name))
        if match.group() != ";" or not inside or inside[-1] == "scope":
            head_start = match.end()
    return found
