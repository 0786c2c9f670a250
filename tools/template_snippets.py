"""Snippets of Jinja2, one construct each, for `tools/template_goldens.py`.

A pair is a snippet that Duplex refuses by design, with a part of its error.
"""

GIVEN = {
    "messages": [
        {"role": "system", "content": " You are \"kind\" é\n"},
        {"role": "user", "content": "Hi a<b & a "},
        {"role": "assistant", "content": "<think>x</think>\n\nYes\n"},
        {"role": "user", "content": "  banana? "},
    ],
    "add_generation_prompt": True,
    "items": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "rows": [
        {"n": 2, "name": "b", "deep": {"x": [1, 5]}},
        {"n": 1, "name": "a", "deep": {"x": [2, 6]}},
        {"n": 2, "name": "A"},
    ],
    "d": {"z": 1, "a": [1, 2.0, None, True], "items": "mine", "count": 3, "k y": "v"},
    "empty": {},
    "n": None,
    "t": True,
    "i": 7,
    "big": 9007199254740993,
    "f": 2.5,
    "whole": 1.0,
    "tiny": 1e-7,
    "huge": 1e16,
    "s": "héllo wörld",
    "quote": "it's \"so\" \\ \t\n\x07 é \u200b 🙂",
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": [{"v": 4, "kids": []}]}]}],
    "enable_thinking": False,
}

# Each is put between {{ and }}.
EXPRESSIONS = r"""
1
-1
1.0
1e3
1e16
1.5e-7
1_000
0x1F + 0b11 + 0o17
true
True
none
None
[1, 'a', 2.5, none, true]
(1,)
()
(1, 'two')
{'a': 1, "b": [2]}
{'b': 1, 'a': 2, 'b': 3}
{1: 'x', true: 'y', 2.5: 'z', none: 0}
d
quote
[quote]
["it's"]
['say "hi"']
['both \' and "']
messages[0]
whole
tiny
huge
big
f
[tiny, huge, whole]
1 / 3
7 // 2
-7 // 2
7 % 3
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
5 / 2
4 / 2
2 ** 10
2 ** -1
2 ** 0.5
-2 ** 2
2 ** 3 ** 2
1 + 2 * 3 - 4
(1 + 2) * 3
1 + 1.0
true + true
i / 0
i % 0
0.1 + 0.2
1e308 * 10
-(1e308 * 10)
10 ** 30
10 ** 20 + 1
'a' * 3
3 * 'ab'
'a' * -1
'a' * 0
[1] * 2
(1, 2) * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
'a' + 1
'a' + none
'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'x'] ~ missing
1 + none
+5
-f
+'a'
-none
not 1
not missing
not []
1 and 2
0 and 2
'' or 'x'
none or missing or 'z'
1 or missing.x
not 1 == 2
1 == 1.0
true == 1
'1' == 1
none == none
[1] == [1.0]
(1,) == [1]
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
missing == missing
missing == none
missing != 1
1 < 2 < 3
1 < 3 < 2
3 > 2 > 1
1 == 1 == 1
1 < 2 == true
1 < 'a'
'a' < 'b'
'Z' < 'a'
[1, 2] < [1, 3]
(1, 'a') < (1, 'b')
[1] < (1,)
none < 1
true < 2
missing < 1
1.5 >= 1
2 in [1, 2]
4 not in items
not 4 in items
'a' in 'banana'
'' in ''
1 in '123'
'z' in d
'q' in d
[1] in d
'a' in missing
'a' in none
'a' in 5
2 in range(3)
'role' in messages[0]
'a' not in 'b' and true
1 if true else 2
1 if false else 2
1 if false
(1 if false) is defined
'a' if n else 'b' if t else 'c'
1 if t else missing.x.y
missing
missing.x
missing['x']
missing()
missing + 1
1 + missing
missing ~ 'x'
missing | length
missing | list
missing | upper
missing | default('d')
missing | default
none | default('d')
none | default('d', true)
'' | default('d', boolean=true)
missing is defined
messages[0].nothing
messages[0].nothing is undefined
messages[0].nothing.more
messages[10]
messages[10] is defined
messages['x']
n.x
n['x']
n.x.y
5 .x
i.real
i.bit_length()
f.is_integer()
d.z
d['z']
d['k y']
d.items() | list
d['items']
d.items is defined
d.count
d['count']
d.get('q')
d.get('q', 5)
d.get('z', 5)
d.get('items')
d.keys()
d.values()
d.items()
d.keys() | list
d.values() | list | length
d.items() | length
d.keys()[0]
d.copy() == d
d.pop
d.pop('z')
d.update({'x': 1})
d.setdefault('x', 1)
items.append(4)
items.append
items.append is defined
items.sort()
items.index(2)
items.index(9)
items.count(1)
items.copy()
(1, 2, 1).count(1)
(1, 2, 1).index(2)
items[0]
items[-1]
items[true]
items[1.0]
items[9]
items.0
s[0]
s[-1]
s[1]
s[99]
s[1:4]
s[:-3]
s[::-1]
s[::2]
s[-3:]
s[4:1]
s[4:1:-1]
s[10:]
s[-100:3]
items[1:]
items[::-1]
items[:100]
items[-2:]
items[2:0:-1]
items[::-2]
items[:-1]
(1, 2, 3)[1:]
(1, 2, 3)[::-1]
range(10)[2:8:3]
range(10)[2:8:3] | list
range(10)[::-1] | list
range(5)
range(1, 10, 3)
range(5) | list
range(5, 0, -2) | list
range(0)
range(5)[2]
range(5) | length
range(100001)
range(1, 2, 0)
range('a')
none[1:]
n[1:]
5[1:]
i[:2]
'abc'[1:9]
{'a': 1}[1:]
n[0]
f[0]
t[:1]
missing[1:]
d[1:]
items['a':]
items[::0]
messages[1:] | length
messages[::-1] | map(attribute='role') | list
'\x41\u00e9\n\t\\\'\"\101'
'\d\é\z'
"a'b"
'a' 'b' "c"
'line\
continued'
s.upper()
s.title()
s.capitalize()
"they're bill's 2nd-hand x2y".title()
'ÉCOLE'.capitalize()
'ßig ŉ ǆ'.title()
'ABC'.lower() ~ 'straße'.upper()
'Straße'.casefold()
'aBc'.swapcase()
'  a b '.strip()
'  a '.lstrip() ~ '|'
'  a '.rstrip() ~ '|'
'xxaxx'.strip('x')
'abcba'.strip('ab')
'a\x1cb\x1c'.strip() | length
'\u3000a\u00a0'.strip()
'a'.strip(none)
'a'.strip(1)
'a,b,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.split(sep=',')
' a  b c '.split()
' a  b c '.split(none, 1)
' a  b c '.rsplit(none, 1)
'a,b,c'.rsplit(',', 1)
''.split()
''.split(',')
'a'.split('')
'abc'.split('b', -1)
'a\nb\r\nc\x0bd\u2028e\n'.splitlines()
'a\nb\n'.splitlines(true)
'a\nb'.splitlines(keepends=true)
'a.b.c'.partition('.')
'a.b.c'.rpartition('.')
'abc'.partition('x')
'abc'.rpartition('x')
'42'.zfill(5)
'-42'.zfill(5)
'abc'.zfill(2)
'ab'.ljust(5) ~ '|'
'ab'.rjust(5, '*')
'ab'.center(5, '*')
'abc'.center(6, '*')
'ab'.center(1)
'ab'.ljust(5, 'xy')
'{} {}'.format(1, 'a')
'{1} {0} {x}'.format(1, 'a', x=2)
'{0.role} {0[content]}'.format(messages[1])
'{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd')
'{:05d} {:+d} {:x} {:b} {:,}'.format(42, 7, 255, 5, 1234567)
'{:.2f} {:8.3f} {:e} {:g} {:.1%} {}'.format(1.005, 2.5, 12345.678, 0.0001, 0.256, 1.0)
'{!r} {!s}'.format('a', 'b')
'{{}}'.format()
'{x}'.format_map({'x': 1})
'{} {}'.format(1)
'{:d}'.format('a')
'{:>10}'.format(none)
'%s %d %5.2f|%-5s|%05d|%x' % ('a', 3, 2.5, 'b', 42, 255)
'%s' % 1
'%s' % [1, 2]
'%(a)s-%(b)d' % {'a': 1, 'b': 2}
'%s %s' % ('a',)
'%s' % ('a', 'b')
'%d' % 'x'
'%d%%' % 50
'%r' % 'a'
'%c%c' % (65, 'b')
'%+d % d %e %g' % (1, 2, 1234.5, 1e-5)
'%.3s|%10s' % ('abcdef', 'x')
'abc' % 1
'abc'.startswith('a')
'abc'.startswith(('x', 'a'))
'abc'.startswith(['a'])
'abc'.startswith('b', 1)
'abc'.endswith(('x', 'c'))
'abc'.endswith('b', 0, 2)
'abc'.endswith('')
'banana'.find('an')
'banana'.find('an', 2)
'banana'.find('x')
'banana'.rfind('an')
'banana'.index('n')
'banana'.index('x')
'banana'.rindex('a')
'banana'.count('a')
'banana'.count('a', 2)
'banana'.count('')
s.find('l')
s.rfind('l')
'aXbXc'.replace('X', '-')
'aXbXc'.replace('X', '-', 1)
'aXbXc'.replace('X', '-', -1)
'abc'.replace('', '-')
'abc'.replace('', '-', 2)
'abc'.replace('a')
'abc'.removeprefix('ab')
'abc'.removesuffix('bc')
'abc'.removesuffix('x')
', '.join(['a', 'b'])
'-'.join('abc')
'-'.join([1])
'-'.join(messages | map(attribute='role'))
'abc'.isalpha() and not 'ab1'.isalpha() and 'é'.isalpha()
'ab1'.isalnum()
'12'.isdigit()
''.isdigit()
'12'.isdecimal()
'½'.isnumeric()
' \t\n'.isspace()
''.isspace()
'ABC'.isupper()
'ABC1'.isupper()
'123'.isupper()
'abc'.islower()
'Ab Cd'.istitle()
'a_1'.isidentifier()
'1a'.isidentifier()
'abc'.isascii()
'é'.isascii()
'a\n'.isprintable()
'a\tbc\td'.expandtabs(4)
'abc'.nothing
'abc'.nothing()
'abc'.__class__
d.__class__
'abc'.upper(1)
'abc'.split(',', 1, 2)
'abc'.upper
messages | length
messages | count
'abc' | length
5 | length
none | length
d | length
s | upper
S | lower
'hello world-wide (web)' | title
'hELLO' | capitalize
'  x ' | trim
'xxaxx' | trim('x')
'x' | center(5) ~ '|'
'aaa' | replace('a', 'b')
'aaa' | replace('a', 'b', 2)
5 | replace(5, 6)
items | join(', ')
items | join
rows | join('-', attribute='name')
[1, none, 2.0, 'x', missing] | join(',')
d | join(',')
'abc' | join('.')
none | join(',')
items | first
[] | first
[] | first is defined
items | last
'abc' | first
'abc' | last
d | first
d | last
items | reverse | list
'abc' | reverse
items | sort
items | sort(reverse=true)
words | sort
words | sort(case_sensitive=true)
rows | sort(attribute='n') | map(attribute='name') | list
rows | sort(attribute='n,name') | map(attribute='name') | list
rows | sort(attribute='n', reverse=true) | map(attribute='name') | list
[1, 'a'] | sort
[none, 1] | sort
words | unique | list
words | unique(true) | list
rows | unique(attribute='n') | map(attribute='name') | list
[[1], [1]] | unique | list
words | min
words | max
[] | max
items | sum
rows | sum(attribute='n')
[1, 2.5] | sum
[] | sum
['a'] | sum
[[1], [2]] | sum(start=[])
rows | map(attribute='name') | list
rows | map(attribute='deep.x.1') | list
rows | map(attribute='deep.x.1', default='none') | list
rows | map(attribute='nothing') | list
words | map('upper') | list
words | map('replace', 'p', 'q') | list
words | map('nothing') | list
words | map | list
none | map('upper') | list
rows | selectattr('n', 'equalto', 2) | map(attribute='name') | list
rows | selectattr('deep') | list | length
rows | rejectattr('deep') | list | length
rows | selectattr('deep', 'defined') | list | length
rows | selectattr('n', '>', 1) | list | length
rows | selectattr('n', 'in', [1, 3]) | map(attribute='name') | list
items | select('odd') | list
items | select('>', 1) | list
[0, 1, '', 'a', none] | select | list
[0, 1, '', 'a', none] | reject | list
items | reject('even') | list
items | select('divisibleby', 3) | list
items | select('nothing') | list
messages | selectattr('role', 'eq', 'user') | first
messages | rejectattr('role', 'in', ['system']) | list | length
rows | groupby('n') | list
rows | groupby('name') | map(attribute='grouper') | list
rows | groupby('name', case_sensitive=true) | map('first') | list
(rows | groupby('n'))[0].list | length
rows | groupby('deep.x.0', default=9) | map(attribute=0) | list
d | dictsort | map('first') | list
{'b': 1, 'A': 2} | dictsort
{'b': 1, 'A': 2} | dictsort(true)
{'b': 1, 'A': 2} | dictsort(by='value')
{'b': 1, 'A': 2} | dictsort(reverse=true)
d | items | list
items | items | list
missing | items | list
items | batch(2) | list
items | batch(2, 'x') | list
range(7) | slice(3) | list
range(7) | slice(3, 'x') | list
'a' | list
d | list
5 | list
none | list
5 | string
none | string
1.0 | string
'42' | int
' 42 ' | int
'42.7' | int
'x' | int
'x' | int(5)
'1_000' | int
'ff' | int(0, 16)
'0x1f' | int(base=16)
'0x1f' | int
'1e3' | int
none | int
2.9 | int
-2.9 | int
true | int
[] | int
missing | int
'inf' | int
'3.14' | float
'x' | float
'x' | float(1.5)
'inf' | float
'nan' | float
3 | float
none | float
'1e5' | float
2.5 | round
3.5 | round
2.675 | round(2)
1234.5678 | round(-2)
1250 | round(-2)
5 | round
2.1 | round(0, 'ceil')
2.9 | round(0, 'floor')
2.345 | round(2, 'ceil')
-5 | abs
-2.5 | abs
'a' | abs
'%s-%s' | format(1, 2)
'%(a)s' | format(a=1)
'a b c d e f g h' | truncate(9)
'a b c d e f g h' | truncate(9, true)
'a b c d e f g h' | truncate(9, false, '..', 0)
'short' | truncate(3)
'the quick brown fox jumps' | wordwrap(10)
'abcdefghijkl mn' | wordwrap(5)
'abcdefghijkl mn' | wordwrap(5, false)
'a b\n\nc d' | wordwrap(3)
'one two-three é_4' | wordcount
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, first=true, blank=true)
'a\nb' | indent('> ')
'a b&c=é/ü?' | urlencode
{'a b': 'c/d', 'e': 1} | urlencode
[('a', 1), ('b', '2 3')] | urlencode
'<a href="x">\'&' | escape
'<b>' | e
'<b>' | safe
('<b>' | safe) ~ '<i>'
('<b>' | safe) + '<i>'
['<b>' | safe]
'<b>' | e | e
'<b>' | e | forceescape
'<b>' | safe | escape
'<p>a  <!-- x --> b &lt; c</p>' | striptags
1 | filesizeformat
999 | filesizeformat
1234567 | filesizeformat
1234567 | filesizeformat(true)
{'class': 'x', 'id': none, 'n': 3} | xmlattr
{'a': 1} | xmlattr(false)
{'b': 2, 'a': [1]} | pprint
'x' | pprint
d | attr('z')
d | attr('get') is defined
'a' | attr('upper') is callable
d | tojson
[] | tojson
{} | tojson
'é"\\\n\t\x07<&>\u2028' | tojson
'é🙂' | tojson(ensure_ascii=true)
[1, 2.0, 1e16, true, none, 'x'] | tojson
[missing] | tojson
missing | tojson
(1, 2) | tojson
{1: 2, none: 3, true: 4, 1.5: 5} | tojson
{(1, 2): 3} | tojson
d | tojson(indent=2)
{'a': [], 'b': {}} | tojson(indent=4)
d | tojson(separators=(',', ':'))
d | tojson(separators=(',', ': '), indent=1)
{'b': 1, 'a': 2} | tojson(sort_keys=true)
{'b': {'d': 1, 'c': 2}} | tojson(indent='\t', sort_keys=true)
d | tojson(2)
d | tojson(false, 2)
'inf' | float | tojson
range(3) | tojson
d.keys() | tojson
messages[0] | tojson
big | tojson
1 is odd
2 is even
9 is divisibleby 3
9 is divisibleby(2)
1 is defined and missing is undefined
none is none
n is not none
missing is none
true is boolean and not 1 is boolean
true is true and false is false
1 is true
1 is integer and not true is integer and not 1.0 is integer
1.0 is float
true is number and 1.5 is number and not 'a' is number
'a' is string and not 1 is string
'abc' is lower
'ABC' is upper
1 is lower
{} is mapping and not [] is mapping
[] is sequence and 'a' is sequence and {} is sequence and () is sequence
1 is sequence
none is sequence
missing is sequence
d.keys() is sequence
range(3) is sequence
[] is iterable and 'a' is iterable and {} is iterable and range(1) is iterable
none is iterable
1 is iterable
missing is iterable
(words | map('upper')) is iterable
d.items() is iterable
range is callable
'a'.upper is callable
1 is callable
none is sameas none
true is sameas true
1 is sameas true
items is sameas items
[1] is sameas [1]
'a' is escaped
('a' | safe) is escaped
1 in [1] is true
2 is in [1, 2]
2 is not in [1, 2]
'a' is in 'abc'
1 is eq 1
1 is == 1
1 is equalto 1.0
1 is ne 2
1 is lt 2 and 2 is gt 1 and 1 is le 1 and 1 is ge 1
2 is greaterthan 1 and 1 is lessthan 2
'upper' is filter and not 'nothing' is filter
'odd' is test
1 is nothing
x is defined | default(3)
1 is defined and 2
[1, 2] is defined | string
not 1 is odd
-5 | abs + 1
-5 is defined
'a' ~ 'b' | upper
'a' + 'b' | upper
('a' + 'b') | upper
1 + 2 | string | length
d.a | length > 3
dict(a=1, b=2)
dict([('a', 1), ('b', 2)])
dict({'a': 1}, b=2)
dict.fromkeys(['a', 'b'], 0)
dict(1)
namespace(a=1).a
namespace({'a': 1}).a
namespace(a=1)
namespace(a=1).b
namespace(_a=1)
namespace(a=1)['a']
joiner('-') is callable
cycler()
lipsum is defined
raise_exception('no ' ~ 1)
raise_exception()
strftime_now('%Y-%m-%d %H:%M:%S')
strftime_now('%d %b %Y') ~ strftime_now('|%B %d, %Y|%A %a|%y|%j|%e|%I %p|%-d|%-m|%_H')
strftime_now('%c|%x|%X|%D|%F|%T|%R|%r|%h|%C|%u|%w|%U|%W|%V|%G|%g|%k|%l|%P|%n|%t|%%|%z|%Z|%f|%s')
strftime_now('%^a %#B %0e %-H %_d %Ey %Od')
strftime_now('100% %q %')
strftime_now(1)
loop
caller
messages | map(attribute='content') | map('trim') | map('length') | list
messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|')
(messages | selectattr('role', 'equalto', 'user') | list)[-1].content
(messages | selectattr('role', 'equalto', 'nobody')) and 'true'
messages | selectattr('role', 'equalto', 'user') | length
messages[0].content.split('"')[1].upper() | replace('K', 'k')
messages[-1]['content'] | trim | length
messages[0]['role'] == 'system' and messages[1].role != 'system'
(1, 2)[0] + [3, 4][1]
{'a': {'b': [1, {'c': 'deep'}]}}.a.b[1].c
[1, 2, 3,]
{'a': 1,}
foo(1
)
[1, 2
'abc
1 +
a b
{'a' 1}
1..2
@
'a' if
'a' | nothing
'a' | nothing if false
(('a' | nothing) if false else 'b')
'x' is nothing if false
"{% raw %}"
'%}' ~ '}}'
{'a': {'b': 1}}
items[-1:][0]
-1 | abs
2 * -3
- -3
not not true
3 - -3
1if true else 2
[i for i in items]
lambda
True and False or None
TRUE
nOne
'é' ~ "日本" ~ '🙂' | length
'🙂abc'[1:]
'日本語'[::-1]
'a\tb' ~ '\u00e9'
enable_thinking is defined and enable_thinking is false
bos_token ~ eos_token ~ pad_token
tools is none and documents is none
tools
i is divisibleby(none)
*items
'%s' % d
'%s' % none
'{}'.format(d)
'{:.3}'.format('abcdef')
'%s' | format('a')
'%05.1f|%+.2e|%G' % (3.14159, 12345.678, 0.00001)
'%-8s|%8s|%.2s' % ('ab', 'cd', 'efg')
'%x %X %o %#x' % (255, 255, 8, 255)
'%i %u' % (3.9, 4)
'%s %s %s' % (none, true, [1.0])
'%5%|%-5d|' % 3
'%(k y)s' % d
'%(q)s' % d
'%' % 1
'%z' % 1
'{0:>{1}}'.format
'{:<6}|{:>6}|{:^6}|{:06.2f}|{:+.1f}|{:_}'.format('a', 1, true, 2.5, 3.0, 1000000)
'{:s} {:d}'.format('x', 5)
'{:,.2f}'.format(1234567.891)
'{:e} {:E} {:.0f} {:G}'.format(1500, 0.00015, 2.5, 1e20)
'{:#x} {:#b} {:o} {:X} {:c}'.format(255, 5, 8, 255, 65)
'{:=+6d}|{:*<4}|{:-}'.format(5, 'z', 7)
'{:%}'.format(0.5)
'{!r:>6}'.format('a')
'{a.real} {b[z]} {c[0]}'.format(a=5, b=d, c=items)
'{'.format()
'}'.format()
'{:q}'.format(1)
'a' < 'B'
'a' == 'a' == 'a'
[3, 1] == [3, 1.0]
[[1], [2]] < [[1], [3]]
(1, 2) + (3,) == (1, 2, 3)
[1, [2, (3, {'k': none})]] ~ ''
{'x': [1, 'a\'b', "q\"q"], (1, 2): none} ~ ''
{1: 2}[1]
{1: 2}[true]
{1: 2}['1']
{none: 1}[none]
{(1, 2): 3}[1, 2]
{[1]: 2}
{{1: 2}: 3}
d['z'] + d.a[0]
d.a[1] is float
d.a[2] is none
d.a.count(1)
d.a.index
d | length
d.items() | map('first') | list
d.items() | sort | map('last') | list
d.keys() | sort
d.values() | map('string') | join('/')
d | map('upper') | list
d | list | sort(reverse=true)
d | selectattr('x') | list
'abc' | map('upper') | join('-')
'cab' | sort | join
'cab' | unique | join
'aab' | unique | list
'abc' | select('in', 'ab') | list
'abc' | batch(2) | list
'a b' | list
words | sort(attribute='0')
words | map('first') | join
words | map('length') | sum
words | map('default', 'x') | list
words | map(attribute=0) | list
words | join(', ') | length
words | select('eq', 'fig') | first | default('none')
words | select('eq', 'nope') | first | default('none')
words | groupby('0') | map('last') | list
items | map('string') | map('int') | list
items | max
items | min
items | sum(start=10)
rows | max(attribute='n')
rows | min(attribute='name')
rows | map(attribute='n') | unique | sort | list
rows | map('items') | map('list') | list | length
rows | sort(attribute='missing')
rows | groupby('missing')
rows | groupby('n') | first | last | length
rows | rejectattr('n', 'eq', 2) | list
rows | selectattr('name', 'lower') | map(attribute='name') | join
rows | selectattr | list
[1, 2, 3] | sum / 2
[3, 1, 2] | sort | first
[true, false, 1] | unique | list
[1.0, 1, true] | unique | list
['b', 'a', 'B'] | sort
['b', 'a', 'B'] | sort(true, true)
[[2, 'a'], [1, 'b']] | sort
[[2, 'a'], [1, 'b']] | sort(attribute=1)
[[2, 'a'], [1, 'b']] | map('last') | list
[(1, 'a'), (2, 'b')] | map(attribute=1) | join
[none, 0, '', 'x'] | select | list
[none, 0, '', 'x'] | select('none') | list
[1, 2, 3, 4] | reject('odd') | list
[1, 2] | first + 1
[1, 2] | last | string + 'x'
range(3) | sum
range(3) | map('string') | join
range(3) | reverse | list
range(3) | last
range(1, 4) | list | tojson
range(3) == range(0, 3)
2 in range(0, 10, 3)
range(3)[1:]
range(3).index(2)
range(0, 10, 2).stop
range(-3) | list
range(2.0)
missing | sort
missing | join
missing | map('upper') | list
missing | selectattr('x') | list
missing | first
missing | last
missing | max
missing | sum
missing | tojson | default
missing | string
missing | int
missing | trim ~ '|'
missing | replace('a', 'b')
missing | indent
missing | reverse | list
missing | batch(2) | list
missing | dictsort
missing | unique | list
missing | abs
missing | round
missing | e
missing | urlencode
missing | wordcount
missing * 2
-missing
missing > 1
missing in [missing]
missing in {}
'x' if missing else 'y'
missing is string
missing is mapping
missing is number
missing is sameas missing
missing is callable
missing is in [1]
[missing]
[missing, missing] | join('-')
{'a': missing}
missing ~ missing
missing or 'x'
missing and 'x'
not missing
missing.items()
none | upper
none | trim
none | tojson
none | replace('o', 'a')
none | list | default('x')
none | join
none | sort
none | map('x') | list
none | selectattr('x') | list
none | first
none | batch(2) | list
none | dictsort
none | items | list
none | int(7)
none | abs
none | round
none | wordcount
none | title
none ~ ''
none + 'a'
none in [none]
none == false
none < none
none is string
none is defined
none and 1
true | string
true | int
true | upper
true + 1.5
true | tojson
true in [1]
true is number
true is integer
false | default('x')
false | default('x', true)
1.0 | int
1.5 | string
1e400
1e400 | tojson
-1e400
1e-400
0.1 + 0.7
100.0 * 1.1
1e22
1e21 + 1
123456789012345678
1234567890123456789012
12345678901234567.0
0.00001
0.0001
1.0e5
5e-324
1.7976931348623157e308
3.0 == 3
3.7 % 1
-3.7 // 1
2 ** 63
2 ** 64 - 1
-7 % -3
7 // -2
0 ** 0
0 ** -1
4 ** 0.5
(-8) ** 3
1_0.5_0
0b102
0xZ
07
00
1.
.5
1e
'1' + '2'
'1' * 2 + '3'
'a' - 'b'
'a' / 2
[] * 3
{} + {}
[1] - [1]
'ab' in ['ab', 'c']
'a' in ('a',)
'a' in {'a': 1}.keys()
1 in {'a': 1}.values()
('a', 1) in {'a': 1}.items()
'a' is in {'a': 1}
1 not in [1] or true
not 1 in [2]
'x' ~ 1 + 2
1 + 2 ~ 'x'
2 * 3 ~ 4 * 5
'a' ~ 'b' == 'ab'
1 if 1 else 2 if 0 else 3
(1 if 0) ~ 'x'
1 if missing is defined else 2
'yes' if 'a' in 'abc' and not 'z' in 'abc' else 'no'
s | length
s | wordcount
s | upper | lower | title
s.split('ö') | last
s.split() | map('capitalize') | join(' ')
s.encode is defined
s | list | length
s | first ~ s | last
s is string and s is iterable and s is sequence and s is not mapping
quote | tojson
quote | e
quote | urlencode
quote | length
quote.strip() | length
quote.splitlines() | length
quote | upper
'\r\n\t' | tojson
'a\\b'
'a\/b'
'\0' | length
'\x7f' ~ ''
['\x7f\x80\xa0\xad']
['\u2028\ufeff\ue000\U0010ffff']
['\U0001f600é\u0301']
['\t\n\r\\']
'\u00e9' == 'é'
'ﬁ' | upper
'İ' | lower | length
'ΑΣ' | lower
'ǆ' | capitalize
'éa ßb' | title
'aé'.isalpha()
'a b'.isalpha()
'日本'.isalpha()
'日本' | upper
'日本'.islower()
'Ⅷ'.isnumeric()
'\u00a0'.isspace()
'abc'.isupper() or 'A'.isupper()
'A1 b2'.swapcase()
'\t'.expandtabs()
'ab\tc'.expandtabs(0)
'a-b_c d'.title()
'x'.join({'a': 1, 'b': 2})
'x'.join(range(2) | map('string'))
'abc'.find('')
'abc'.find('', 3)
'abc'.find('', 4)
'abc'.rfind('')
'abc'.find('c', -1)
'abc'.find('a', -2)
'abc'.count('', 1)
'abcabc'.index('c', 3)
'aaa'.replace('aa', 'b')
'aaa'.count('aa')
'a,b,,c'.split(',')
',a,'.split(',')
'a  b'.split(' ')
'a b c'.rsplit(' ', 1)
'a b c'.split(' ', 0)
'abc'.split('abc')
'abc'.startswith('')
'abc'.startswith('bc', 1)
'abc'.startswith('abcd')
'abc'.endswith(('bc', 'x'), 1)
'abc'.startswith(())
'abc'.startswith(1)
'abc'.removeprefix('')
'  abc'.lstrip(' a')
'abc'.rstrip('bc')
'abc'.strip('')
'a'.center(4, 'é')
'7'.zfill(3) ~ '+7'.zfill(3) ~ ''.zfill(2)
'a'.ljust(3) ~ 'b'.rjust(3) ~ '|'
'x'.upper().lower().title()
{'a': {'b': 1}}['a']['b']
{'a': {'b': 1}}.a.b
{'keys': 1}.keys
{'keys': 1}['keys']
{'get': 1}.get('get')
{'a': 1}.values() | first
{'a': 1}.items() | list | first | last
{'b': 1, 'a': 2} | tojson
{'b': 1, 'a': 2} | dictsort | tojson
{'a': none, 'b': true} | tojson(indent=0)
{'a': [1, {'b': 2}]} | tojson(indent=3)
[[], {}, [[]]] | tojson(indent=2)
['a'] | tojson(indent=-1)
{'a': 1} | tojson(indent=true)
{'a': 1} | tojson(separators=['.', '='])
{'a': 1, 'b': 2} | tojson(separators=(';',))
{'é': 'ü'} | tojson(ensure_ascii=true)
{true: 1, 1.5: 2} | tojson
'a"b' | tojson | tojson
namespace(a=1) | tojson
(words | map('upper')) | tojson
1.1 | tojson
1e100 | tojson
-0.0 | tojson
-0.0
messages | map(attribute='role') | unique | list | tojson
messages | tojson | length
messages[1:3] | map(attribute='role') | join('+')
messages[::2] | length
messages[-1:] | first | attr('role')
messages | last | tojson
messages | first | dictsort
messages | selectattr('role', 'ne', 'user') | map(attribute='role') | list
messages | groupby('role') | map(attribute='grouper') | list
messages | map(attribute='content') | map('length') | max
messages | map(attribute='nothing') | select('defined') | list | length
messages | sum(attribute='n')
loop is defined
varargs is defined
caller is defined
namespace is defined
range is defined and dict is defined and joiner is defined
strftime_now is defined
raise_exception is defined
raise_exception is callable
dict is callable
cycler is mapping
foo.bar is defined
messages.x is defined
messages.0.role
messages.-1
messages[0]role
messages[0].role.upper().lower()[1:3]
(messages[0]).role
(1)
((1))
(((1, 2)))
[(1)]
(1, )
{}
{'a': {}}
[[]]
[[[1]]]
'a'if 1 else'b'
1<2
1==1and 2==2
a.b.c is defined
i+1
i-1
i -1
-i
i*-1
i~-1
i|string~'x'
'a' is string is string
i is odd is defined
i is not odd
i is divisibleby 7
i is divisibleby 2 or i is odd
not i is odd
i in [7] is defined
i is number and f is number
f is integer
whole is integer
whole == 1
whole | int
whole | string
whole ~ ''
tiny ~ huge
huge | int
big + 1
big / 1
big | float
big * big
""".strip("\n").replace("\\\n", "\\\x00").split("\n")
EXPRESSIONS = [e.replace("\\\x00", "\\\n") for e in EXPRESSIONS]

# Whole templates.
TEMPLATES = [
    "",
    "\n",
    "a\n",
    "a\n\n",
    "a\r\nb\rc\n",
    "{# comment #}a{#- b -#} c",
    "a {#- x #} b",
    "a\n{# x #}\nb",
    "  {# x #}  b",
    "{#",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc",
    "a\n  {%+ if true %}\n  b\n  {%+ endif %}\nc",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc",
    "a {% if true %} b {% endif %} c",
    "a\n{% if true +%}\nb{% endif +%}\nc",
    "a\n\n   {{- 1 -}}   \n b",
    "a\n   {{ 1 }}\n b",
    "   {{+ 1 }}",
    "x{% raw %} {{ a }} {% if %} {% endraw %}y",
    "x {%- raw -%} {{ a }} {%- endraw -%} y",
    "  {% raw %}\na\n  {% endraw %}\nb",
    "{% raw %}",
    "{{ 1 }}\n",
    "{{ 1 }}\n\n",
    "{% if true %}\n\nx\n\n{% endif %}\n\n",
    "\t{% set a = 1 %}\n{{ a }}",
    "a  {% set a = 1 %}  b",
    "{% set a = 1 %}{{ a }}{% set a = a + 1 %}{{ a }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1] %}",
    "{% set (a, (b, c)) = (1, (2, 3)) %}{{ a }}{{ b }}{{ c }}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set a %}x {{ 1 }}{% endset %}[{{ a }}]",
    "{% set a | upper | replace('X', 'y') %}x {{ 1 }}{% endset %}[{{ a }}]",
    "{% set true = 1 %}",
    "{% set d.z = 1 %}",
    "{% set ns = namespace(a=1, b=[]) %}{% set ns.a = 2 %}{% set ns.c = 'x' %}{{ ns.a }}{{ ns.c }}{{ ns.b }}{{ ns }}",
    "{% set ns = namespace() %}{% for x in items %}{% set ns.last = x %}{% endfor %}{{ ns.last }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set ns = namespace(i=0) %}{% set ns.i, y = 5, 6 %}{{ ns.i }}{{ y }}",
    "{% set x = 1 %}{% for i in items %}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% for i in items %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in items %}{{ i }}{% endfor %}{{ i }}",
    "{% for i in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for i in items %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}",
    "{% for i in items %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}",
    "{% for i in items %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in [1, 1, 2, 2, 1] %}{{ loop.changed(i) }},{% endfor %}",
    "{% for i in items %}{{ loop.nothing }}{% endfor %}",
    "{% for i in items %}{{ loop['index'] }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in items %}{{ i }}{% else %}none{% endfor %}",
    "{% for i in missing %}x{% else %}none{% endfor %}",
    "{% for i in none %}x{% endfor %}",
    "{% for i in 5 %}x{% endfor %}",
    "{% for c in 'aé🙂' %}{{ c }}-{% endfor %}",
    "{% for k in d %}{{ k }},{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | items %}{{ k }}{{ loop.last }};{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for i in items if i > 1 %}{{ i }}:{{ loop.index }}/{{ loop.length }}{{ loop.last }};{% endfor %}",
    "{% for i in items if i > 9 %}x{% else %}none{% endfor %}",
    "{% set ns = namespace(go=true) %}{% for i in items if ns.go %}{{ i }}{% set ns.go = false %}{% endfor %}",
    "{% for i in items %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in items %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% endfor %}!",
    "{% for i in items %}{% for j in items %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }};{% endfor %}{% endfor %}",
    "{% for i in items %}{% break %}{% else %}none{% endfor %}",
    "{% for i in items %}{% if i == 1 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "{% for i in items %}{% continue %}{% else %}none{% endfor %}",
    "{#x",
    "a{% raw %}b",
    "{% break %}",
    "{% for i in items %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    "{% for i in items %}{% set x %}{{ i }}{% continue %}{% endset %}{% endfor %}!",
    "{% for i in items %}{% for j in 'ab' %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}",
    "{% for i in items %}{% set outer = loop %}{% for j in 'ab' %}{{ outer.index }}{{ loop.index }};{% endfor %}{% endfor %}",
    "{% for n in tree recursive %}{{ n.v }}({{ loop.depth }}{{ loop(n.kids) }}){% endfor %}",
    "{% for n in tree %}{{ loop(n.kids) }}{% endfor %}",
    "{% for i in items recursive %}{{ i }}{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% endfor %}",
    "{% for i in items | sort %}{{ i }}{% endfor %}",
    "{% for i in items, words %}{{ i }}{% endfor %}",
    "{% for loop in items %}{% endfor %}",
    "{% for x.y in items %}{% endfor %}",
    "{% for i in items %}{% set loop = 1 %}{% endfor %}",
    "{% set loop = 1 %}{{ loop }}",
    "{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "{% set g = words | map('upper') %}{{ g | list }}{{ g | list }}",
    "{% set g = words | map('upper') %}{{ g | first }}{{ g | join(',') }}",
    "{% set g = words | select %}{% for w in g %}{{ w }}{% break %}{% endfor %}{{ g | list }}",
    "{% set g = words | select %}{{ 'fig' in g }}{{ g | list }}",
    "{% set g = [1, 'a'] | map('abs') %}{{ g | first }}",
    "{% set g = [1, 'a'] | map('abs') %}{{ g | list }}",
    "{% set g = 5 | map('abs') %}ok",
    "{% if missing %}a{% elif n %}b{% elif t %}c{% else %}d{% endif %}",
    "{% if 0 %}a{% endif %}{% if '' %}b{% endif %}{% if [] %}c{% endif %}{% if {} %}d{% endif %}{% if 0.0 %}e{% endif %}{% if ' ' %}f{% endif %}",
    "{% if true %}{% if false %}a{% else %}b{% endif %}{% endif %}",
    "{% if true %}",
    "{% endif %}",
    "{% if %}{% endif %}",
    "{% if true: %}a{% endif %}",
    "{% if a, b %}x{% endif %}",
    "{% nothing %}",
    "{% do x %}",
    "{% %}",
    "{{ }}",
    "{{",
    "{% if",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% print 1, 'a' %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set a = 3 %}{{ a }}{% endwith %}{{ a }}",
    "{% set a = 5 %}{% with a = a + 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% filter upper %}a {{ 'b' }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}aa{% endfilter %}",
    "{% filter trim %}\n x {% set y = 1 %}\n{% endfilter %}{{ y }}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=0) }}{{ m() }}",
    "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(none) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, c=2) }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}inside{% endcall %}",
    "{% macro m() %}[{{ caller(1, y=2) }}]{% endmacro %}{% call(x, y) m() %}{{ x }}{{ y }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}inside{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% if caller %}{{ caller() }}{% endif %}{% endmacro %}{{ m() }}{% call m() %}y{% endcall %}",
    "{% macro fact(n) %}{{ n }}{% if n > 1 %},{{ fact(n - 1) }}{% endif %}{% endmacro %}{{ fact(5) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% set x = 2 %}{{ m() }}",
    "{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{{ m() }}{% macro m() %}x{% endmacro %}",
    "{% macro m() %}a{% endmacro %}{{ m }}{{ m.name }}{{ m.arguments }}{{ m() | length }}{{ m() + 'b' }}",
    "{% macro m(x) %}\n  {{- x -}}\n{% endmacro %}\n[{{ m(1) }}]",
    "{% for i in items %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% for i in items %}{% call(x) (loop.cycle) %}{% endcall %}{% endfor %}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 3, 'b': 4}) }}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% block a %}x{{ i }}{% endblock %}",
    "{% for i in items %}{% block b scoped %}{{ i }}{% endblock %}{% endfor %}",
    "{% for i in [100] %}{% block b %}{{ i }}{% endblock %}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner('|') %}{% for i in items %}{{ j() }}{{ i }}{% endfor %}",
    "{% set j = joiner() %}{{ j() }}{{ j() }}",
    "{% generation %}x{% endgeneration %}",
    "a{% generation %}é🙂{% endgeneration %}b",
    "é {%- generation -%} b {%- endgeneration -%} c{% generation %}{% endgeneration %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% else %}{{ m.role }}\n{% endif %}{% endfor %}",
    "  {% generation %}\n  x\n  {% endgeneration %}\ny",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% set x = 5 %}{% generation %}{{ x }}{% endgeneration %}",
    "{% for i in items %}{% generation %}{{ loop.index }}{{ i }}{% endgeneration %};{% endfor %}",
    "{% generation %}a",
    "{% endgeneration %}",
    "{% for i in items %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% set generation = 1 %}{{ generation }}",
    "{% with %}{% generation %}x{% endgeneration %}{% endwith %}y",
    "{% if true %}ab{% generation %}x{% endgeneration %}{% endif %}y",
    "{% autoescape false %}{{ '<' }}{% endautoescape %}",
    "{% set messages = messages[1:] %}{{ messages | length }}",
    "{% set x = messages[0] %}{{ x.role }}{% set role = x['role'] %}{{ role }}",
    "{%- for m in messages -%}\n  {{ m.role }}\n{%- endfor -%}",
    "{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n",
    "{% for m in messages %}{{ m.role }}\n\n{% endfor %}",
    "{{ 'a' }}{{- ' b' }}  {{ 'c' -}}  d",
    "{{ {'a': 1}['a'] }}{{ {'a': {'b': 2}}}}",
    "{{ '}}' }}{{ \"%}\" }}",
    "{% if '%}' == '%}' %}y{% endif %}",
    "<{{ none }}|{{ true }}|{{ 1.0 }}|{{ [] }}|{{ {} }}>",
    "{{ messages }}",
    "{% set s = '' %}{% for i in range(3) %}{% set s = s ~ i %}{% endfor %}[{{ s }}]",
    "{% for x in rows %}{{ x.name if x.deep is defined else '-' }}{% endfor %}",
    "{% set a = [] %}{% for i in items %}{% set a = a + [i] %}{{ a }}{% endfor %}{{ a }}",
    "{{ 'x' }}\n  {% if t %}\n    {{ 'y' }}\n  {% endif %}\nz\n",
    "{{ messages[0].content | tojson }}{{ messages | tojson | length }}",
    "{% set tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {}}} %}{{ tool | tojson(indent=4) }}",
    "{%- if tools is defined and tools is not none and tools | length > 0 %}a{% else %}b{% endif %}",
    "{% if tools is iterable and tools | length > 0 %}a{% else %}b{% endif %}",
    "{% if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}{{ tools_in_user_message }}",
    "{% set x = namespace(a=namespace(b=1)) %}{{ x.a.b }}",
]

# What Jinja2 can do and Duplex refuses, with a part of its error.
REFUSED = [
    ("{{ words | map('upper') }}", "generator"),
    ("{{ 'abc'.upper }}", "printing a method"),
    ("{{ range }}", "printing a function"),
    ("{{ d.items }}", "printing a method"),
    ("{{ d | attr('items') }}", "printing a method"),
    ("{{ joiner() }}", "printing a Joiner"),
    ("{{ cycler('a') }}", "printing a Cycler"),
    ("{% for i in items %}{{ loop }}{% endfor %}", "printing 'loop'"),
    ("{{ words | random }}", "'random' is not supported"),
    ("{{ self }}", "'self' is not supported"),
    ("{{ lipsum() }}", "lipsum"),
    ("{{ 'see http://a.de' | urlize }}", "'urlize' is not supported"),
    ("{{ 'a-b c' | wordwrap(2) }}", "hyphens"),
    ("{{ ['x' * 40, 'y' * 50] | pprint }}", "pprint"),
    ("{{ 'a'.encode() }}", "'encode'"),
    ("{{ 'ab'.translate({97: 'x'}) }}", "'translate'"),
    ("{{ '\\N{BULLET}' }}", "\\N{...}"),
    ("{{ 10 ** 50 }}", "128 bits"),
    ("{{ 170141183460469231731687303715884105728 }}", "128 bits"),
    ("{{ '%*d' % (5, 3) }}", "%*"),
    ("{{ '{:{}}'.format('a', 5) }}", "a field inside a field"),
    ("{{ ('a' | safe) * 2 }}", "marked safe"),
    ("{{ ('a' | safe).upper() }}", "marked safe"),
    ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "'autoescape' is not supported"),
    ("{% macro m() %}ab{% generation %}c{% endgeneration %}{% endmacro %}x{{ m() }}", "generation"),
    ("{{ 'ab' is sameas('a' ~ 'b') }}", "sameas"),
    ("{{ (-8) ** 0.5 }}", "complex"),
    ("{{ '٣'.isdigit() }}", "beyond ASCII"),
]

# Python's own limits on these are of another kind; both fail.
REFUSED_BY_BOTH = [
    "{{ self.a() }}",
    "{{ 'x' * 10 ** 12 }}",
    "{{ 'x'.ljust(10 ** 12) }}",
    "{{ range(10 ** 9) | list }}",
]


def all_snippets():
    refused = {template for template, _ in REFUSED}
    plain = ["{{ " + e + " }}" for e in EXPRESSIONS] + TEMPLATES + REFUSED_BY_BOTH
    plain = [template for template in dict.fromkeys(plain) if template not in refused]
    return [(template, None) for template in plain] + REFUSED
