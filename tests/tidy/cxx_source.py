"""A C++ file as the checks see it: text without comments and literals, includes, lengths of functions."""

import re

_LITERAL = re.compile(
    r'(?P<comment>//[^\n]*|/\*.*?\*/)'
    r'|(?P<raw>\bu?8?L?R"(?P<mark>[^()\\ ]{0,16})\(.*?\)(?P=mark)")'
    r'|(?P<string>"(?:\\.|[^"\\\n])*")'
    r"|(?P<char>(?<![0-9A-Za-z_])(?:u8|[uUL])?'(?:\\.|[^'\\\n])+')", re.DOTALL)
_INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
_CONTAINER = re.compile(r'^\s*(?:template\s*<.*>\s*)?(?:inline\s+)?(?:namespace|class|struct|union|enum|extern)\b')


def _blank(text):
    return re.sub(r'[^\n]', ' ', text)


def without_literals(text, keep_comments=False):
    """Comments and the insides of literals become blanks; every line keeps its number."""
    def replace(match):
        if match.group('comment') is not None:
            return match.group(0) if keep_comments else _blank(match.group(0))
        return _blank(match.group(0))
    return _LITERAL.sub(replace, text)


def line_of(text, offset):
    return text.count('\n', 0, offset) + 1


def includes(text):
    """(line, path, quoted) of each include directive."""
    # Comments go, but not strings: the path of an include is one.
    bare = _LITERAL.sub(lambda m: _blank(m.group(0)) if m.group('comment') else m.group(0), text)
    return [(line_of(bare, m.start()), m.group(1) or m.group(2), m.group(1) is not None) for m in _INCLUDE.finditer(bare)]


def functions(text):
    """(line, name, lines of the body) of each outermost function."""
    bare = re.sub(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', lambda m: _blank(m.group(0)), without_literals(text), flags=re.MULTILINE)
    found = []
    stack = []           # (is_function, offset of the brace, name)
    header_start = 0
    for match in re.finditer(r'[{};]', bare):
        token, at = match.group(0), match.start()
        inside_function = any(entry[0] for entry in stack)
        if token == '{':
            header = bare[header_start:at]
            is_function = not inside_function and '(' in header and not _CONTAINER.match(header)
            name = re.search(r'([~\w:]+)\s*\(([^()]*)', header)
            label = (name.group(1) + ('(' + name.group(2).strip() + ')' if name.group(1).startswith('TEST') else '')) if name else '?'
            stack.append((is_function, at, label))
        elif token == '}' and stack:
            is_function, start, name = stack.pop()
            if is_function:
                found.append((line_of(bare, start), name, bare.count('\n', start, at) - 1))
        if token == ';' and inside_function:
            continue
        header_start = at + 1
    return found
