use super::tests::{message, problem, template};
use super::*;

#[test]
fn work_on_long_texts_is_counted() {
    let times = |set: &str, body: &str| {
        format!("{set}{{% for i in range(99999) %}}{{% if {body} %}}{{% endif %}}{{% endfor %}}")
    };
    let text = "{% set s = 'ab' * 999999 %}";
    for body in [
        "s.count('c')",
        "s.find('c') > 0",
        "s.startswith(('c', s))",
        "s.strip(s)",
        "s | trim(s)",
        "s.split('c') | length > 1",
        "s.split('c', 1)",
        "s.replace('c', 'd')",
        "'c' in s",
        "s in [s, s]",
        "s == s ~ ''",
        "s < s ~ 'a'",
        "s[-1] == 'a'",
        "s[:1] == 'a'",
        "s | length",
        "s | upper",
        "s is upper",
        "s | int",
        "s | wordcount",
        "s | first",
        "'%.1s' % s",
        "'{:.1}'.format(s)",
        "s | string | default('')",
        "[s, s] | unique | list",
        "[s ~ 'b', s ~ 'a'] | sort",
        "[s, s] | join('') | length",
        "{s: 1}[s]",
        "s ~ 'a'",
        "s + 'a'",
        "[s] | map('upper') | list",
        "s.isalpha()",
        "s.index('a') < 0",
    ] {
        problem(&times(text, body));
    }
    // Values that hold each other several times are longer than they look.
    let both = "{% set ns = namespace(x=(1, 2), y=(1, 2)) %}{% for i in range(60) %}\
                {% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}";
    for body in [
        "ns.x == ns.y",
        "ns.x < ns.y",
        "{ns.x: 1}",
        "ns.x in [ns.y]",
        "ns.x | string",
        "ns.x | pprint",
        "ns.x | tojson",
        "ns.x is filter",
    ] {
        problem(&format!("{both}{{% if {body} %}}{{% endif %}}"));
    }
    let names: String = (0..9999).map(|i| format!("{{% set n{i} = 1 %}}")).collect();
    problem(&times(&names, "n0 or nothing"));
    let keys = "{% set d = dict.fromkeys(range(9999)) %}";
    problem(&times(keys, "9998 in d"));
    problem("{{ 'a' * 999999 | wordwrap(1) }}{{ ('a' * 999999) | wordwrap(1) }}");
}

#[test]
fn a_long_text_of_a_user_warrants_more_work_and_longer_texts() {
    let messages = [message("user", &"a b ".repeat(12 << 20)), message("assistant", "c")];
    let text = "{% for m in messages %}{{ m.content | trim }}\
                {{ m.content.split('</x>')[-1].count('zz') }}{% endfor %}";
    let rendered = template(text)
        .unwrap()
        .render(&TemplateInput { messages: &messages.each_ref(), ..TemplateInput::default() });
    assert_eq!(rendered.unwrap().text.len(), (48 << 20) - 1 + 3);
}
