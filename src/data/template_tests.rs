use super::super::jinja::strftime;
use super::*;

use serde_json::json;

pub(super) fn message(role: &str, content: &str) -> Json {
    json!({"role": role, "content": content})
}

/// 2026-11-21 07:05:09 UTC, a Saturday.
const NOW: i64 = 1_795_244_709;

pub(super) fn template(source: &str) -> Result<ChatTemplate> {
    let special = json!({"bos_token": "<|begin|>", "eos_token": "<|eot_id|>"});
    ChatTemplate::new(source, "dir", special.as_object().unwrap(), NOW)
}

fn render(
    template: &ChatTemplate,
    messages: &[Json],
    add_generation_prompt: bool,
) -> Result<String> {
    let messages: Vec<&Json> = messages.iter().collect();
    let messages = &messages[..];
    let input = TemplateInput { messages, add_generation_prompt, ..TemplateInput::default() };
    Ok(template.render(&input)?.text)
}

fn conversation() -> Vec<Json> {
    vec![
        message("system", " You are \"kind\" é\n"),
        message("user", "Hi a<b & a "),
        message("assistant", "<think>x</think>\n\nYes\n"),
        message("user", "  banana? "),
    ]
}

fn rendered(source: &str) -> String {
    render(&template(source).unwrap(), &conversation(), true).unwrap()
}

/// The text of an expression.
fn value(expression: &str) -> String {
    rendered(&format!("{{{{ {expression} }}}}"))
}

pub(super) fn problem(source: &str) -> String {
    let outcome = template(source).and_then(|t| render(&t, &conversation(), true));
    let e = outcome.expect_err(source);
    assert_eq!(e.exit_code(), 2);
    let line = e.to_string();
    assert!(line.starts_with("chat template of dir") && !line.contains('\n'), "{line}");
    line
}

const CHATML: &str = r"{% for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
";

/// The expected texts here and in the next two tests are transformers' own.
#[test]
fn chatml() {
    assert_eq!(
        rendered(CHATML),
        "<|im_start|>system\n You are \"kind\" é\n<|im_end|>\n\
         <|im_start|>user\nHi a<b & a <|im_end|>\n\
         <|im_start|>assistant\n<think>x</think>\n\nYes\n<|im_end|>\n\
         <|im_start|>user\n  banana? <|im_end|>\n<|im_start|>assistant\n"
    );
    let closed = render(&template(CHATML).unwrap(), &conversation()[1..3], false).unwrap();
    assert_eq!(
        closed,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi a<b & a <|im_end|>\n\
         <|im_start|>assistant\n<think>x</think>\n\nYes\n<|im_end|>\n"
    );
}

#[test]
fn headers_date_and_raised_exception() {
    let source = r#"{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + strftime_now("%d %b %Y")
    + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'user' or message.role == 'assistant') %}
        {{- raise_exception("Unknown role " + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
        + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;
    assert_eq!(
        rendered(source),
        "<|begin|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 21 Nov 2026\n\nYou are \
         \"kind\" é<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi a<b & a<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n<think>x</think>\n\nYes<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nbanana?<|eot_id|><|start_header_id|>assistant\
         <|end_header_id|>\n\n"
    );
    let chat = [message("user", "hi"), message("critic", "bad")];
    let e = render(&template(source).unwrap(), &chat, true).err().unwrap();
    assert_eq!(e.to_string(), "chat template of dir line 12: Unknown role critic");
}

/// Trimmed blocks, loop controls, generation marks, Python's methods, an undefined name, `tojson`
/// of a message in its order.
#[test]
fn hugging_face_quirks() {
    let source = r"{% set ns = namespace(n=0, last='') %}
{% for m in messages[::-1] %}
    {% if m.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.n = ns.n + 1 %}
    {% if ns.n > 2 %}
        {% break %}
    {% endif %}
[{{ m.role | upper }}|{{ m.role.title() }}|{{
    m['content'].split('</think>')[-1].lstrip('\n').rstrip() }}]
{% endfor %}
{% generation %}
{{ messages[0] | tojson }}{{ messages[0].content | tojson }}
{% endgeneration %}
{% for k, v in messages[-1].items() %}
  {{ k }}={{ v.strip().replace('a', 'b', 1) }};
{% endfor %}
{% if messages[0].content.startswith('You')
    and not messages[0].content.endswith('zz') %}yes{% endif %}
{% if tools is not none %}tools{% else %}no tools{% endif %} {{ missing }}|{{
    messages | length }}|{{ messages[-1].get('name', 'nobody') }}
end
";
    assert_eq!(
        rendered(source),
        r#"[USER|User|  banana?]
[ASSISTANT|Assistant|Yes]
{"role": "system", "content": " You are \"kind\" é\n"}" You are \"kind\" é\n"
  role=user;
  content=bbnana?;
no tools |4|nobody
end"#
    );
}

/// Each pair as CPython and transformers have it.
#[test]
fn python_methods() {
    for (expression, expected) in [
        ("'a,b,c'.rsplit(',', 1) | join('+')", "a,b+c"),
        ("'a,b,c'.split(',', 1)[1]", "b,c"),
        ("'a,b,c'.split(',', -1) | length", "3"),
        ("' x y  z '.split() | join('+')", "x+y+z"),
        ("'xxaxx'.strip('x')", "a"),
        ("'  a '.lstrip() + '|'", "a |"),
        ("'aXbX'.replace('X', '-', -1)", "a-b-"),
        ("'aXbX'.replace('X', '-', 1)", "a-bX"),
        ("'héllo'.find('l')", "2"),
        ("'héllo'.rfind('l')", "3"),
        ("'hello'.find('z')", "-1"),
        ("'banana'.count('a')", "3"),
        ("\"o'neil x2y\".title()", "O'Neil X2Y"),
        ("'éCOLE'.capitalize()", "École"),
        ("'12'.isdigit() and not ''.isdigit()", "True"),
        ("'-'.join(['p', 'q'])", "p-q"),
        ("'a\\nb\\r\\nc'.splitlines() | join('/')", "a/b/c"),
        ("'ab'.startswith(('x', 'a'))", "True"),
        ("'ab'.endswith('a')", "False"),
        ("'ab'.removeprefix('a') + 'ab'.removesuffix('b') + 'ab'.removesuffix('x')", "baab"),
        ("{'k': 1}.keys() | list | length", "1"),
        ("{'k': 1}.get('k') + ({'k': 1}.values() | list)[0]", "2"),
        ("{'k': 1}.get('z') is none", "True"),
        ("'z' in messages[0]", "False"),
        ("'role' in messages[0]", "True"),
        ("messages[0].tool_calls is defined", "False"),
    ] {
        assert_eq!(value(expression), expected, "{expression}");
    }
    assert!(problem("{{ 'a'.nothing() }}").contains("has no attribute 'nothing'"));
    assert!(problem("{{ 'a'.split('') }}").contains("empty separator"));
    assert!(problem("{{ 'a'.upper(1) }}").starts_with("chat template of dir line 1:"));
}

#[test]
fn json_as_python_writes_it() {
    for (expression, expected) in [
        ("['a', {'x': 1}] | tojson", r#"["a", {"x": 1}]"#),
        ("['a', {'x': 1}] | tojson(separators=(',', ':'))", r#"["a",{"x":1}]"#),
        ("[1, 2.5, 1.0, true, none] | tojson", "[1, 2.5, 1.0, true, null]"),
        ("'é\"\\n<&>' | tojson", r#""é\"\n<&>""#),
        ("'é😀' | tojson(ensure_ascii=true)", r#""\u00e9\ud83d\ude00""#),
        (
            "{'b': [1], 'a': {}} | tojson(indent=2, sort_keys=true)",
            "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}",
        ),
        ("messages[3] | tojson(sort_keys=true)", r#"{"content": "  banana? ", "role": "user"}"#),
    ] {
        assert_eq!(value(expression), expected, "{expression}");
    }
    assert!(problem("{{ 'a' | tojson(nothing=1) }}").contains("nothing"));
    assert!(problem("{{ 'a' | tojson(separators=['a']) }}").contains("two strings"));
}

#[test]
fn dates() {
    assert_eq!(
        value("strftime_now('%Y-%m-%d %H:%M:%S %y %e %b %B %a %A %I%p %%')"),
        "2026-11-21 07:05:09 26 21 Nov November Sat Saturday 07AM %"
    );
    assert_eq!(value("strftime_now('%-d %-m %-H %-I é%é %-é %')"), "21 11 7 7 é%é %-é %");
    for (seconds, date) in [
        (0, "1970-01-01 Thu"),
        (-1, "1969-12-31 Wed"),
        (951_782_400, "2000-02-29 Tue"),
        (4_107_542_400, "2100-03-01 Mon"),
    ] {
        assert_eq!(strftime("%Y-%m-%d %a", seconds), date);
    }
    assert_eq!(strftime("%-d %-H %-I %p", 43_200), "1 12 12 PM");
    for extreme in [i64::MIN, i64::MAX] {
        assert!(!strftime("%c %Y %", extreme).is_empty());
    }
}

#[test]
fn endless_templates_are_stopped() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let line = problem(nested);
    assert!(line.ends_with("it takes too much work for its input"), "{line}");
    // Values nested deeper than a stack that they are written and dropped on.
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}\
        {% endfor %}";
    assert!(problem(deep).ends_with("a value is nested too deeply"));
    let chain = "{% set ns = namespace(end=namespace()) %}{% for i in range(20000) %}\
        {% set new = namespace() %}{% set old = ns.end %}{% set old.next = new %}\
        {% set ns.end = new %}{% endfor %}done";
    assert_eq!(rendered(chain), "done");
    let scopes = "{% set ns = namespace() %}{% macro m() %}{% macro n() %}{% endmacro %}\
        {% set ns.m = n %}{% endmacro %}{% set ns.m = m %}{% for i in range(9999) %}{{ ns.m() }}\
        {% endfor %}done";
    assert_eq!(rendered(scopes), "done");
    for grows in [
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}\
         {% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}\
         {% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}\
         {% set ns.x = ns.x.replace('b', ns.x) %}{% endfor %}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '\t'.expandtabs(10 ** 9) }}",
        "{{ 'a\nb' | indent(10 ** 9) }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ range(9) | batch(10 ** 9, 1) | list }}",
        "{{ [] | slice(10 ** 9) | list }}",
        "{{ ['a'] * 9999 | join('b' * 99999) }}",
    ] {
        problem(grows);
    }
    assert!(problem("{{ range(10 ** 12) | list }}").starts_with("chat template of dir line 1"));
    assert!(problem("{{ 'x' * 10 ** 12 }}").starts_with("chat template of dir line 1"));
    assert!(problem("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").contains("recursion"));
}

#[test]
fn broken_templates_name_the_line() {
    for (source, line) in [
        ("a\n{% for m in messages %}", 2),
        ("a\nb\n{{ messages[ }}", 3),
        ("{{ missing.role }}", 1),
        ("\n{% if %}", 2),
        ("{% endgeneration %}", 1),
    ] {
        let found = problem(source);
        assert!(found.starts_with(&format!("chat template of dir line {line}: ")), "{found}");
    }
    for source in ["{%}", "{%%}", "{%", "{{", "{%-", "{%}%}", "{% generation", "é{%}é"] {
        problem(source);
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    problem(&deep);
    let deep = "{% if true %}".repeat(100_000);
    problem(&deep);
}

#[test]
fn generation_marks_print_nothing() {
    assert_eq!(rendered("a{%- generation -%} b {%- endgeneration -%} c"), "abc");
    assert_eq!(rendered("{%+ generation %}b{% endgeneration +%}"), "b");
    assert_eq!(rendered("{{ 'generation' }}{% set generation = 1 %}"), "generation");
}

/// A file of goldens.
fn golden(name: &str) -> Json {
    let path = format!("{}/tests/golden/templates/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The difference between a rendering by Jinja2 and ours; None where they are alike.
fn difference(source: &str, given: &Json, case: &Json) -> Option<String> {
    let mut variables = given.as_object().unwrap().clone();
    let mut take = |name: &str| variables.shift_remove(name);
    let messages = take("messages").unwrap_or_else(|| json!([]));
    let (tools, documents) = (take("tools"), take("documents"));
    let special = json!({"bos_token": take("bos_token"), "eos_token": take("eos_token")});
    let add_generation_prompt = take("add_generation_prompt") == Some(json!(true));
    let input = TemplateInput {
        messages: &messages.as_array().unwrap().iter().collect::<Vec<_>>(),
        tools: tools.as_ref(),
        documents: documents.as_ref(),
        variables: Some(&variables),
        add_generation_prompt,
    };
    let template = ChatTemplate::new(source, "dir", special.as_object().unwrap(), NOW);
    let ours = template.and_then(|t| t.render(&input)).map_err(|e| e.to_string());
    let alike = match (&ours, case["text"].as_str(), case["refused"].as_str()) {
        (Err(line), _, Some(refused)) => line.contains(refused) && !line.contains('\n'),
        (Err(line), None, None) => case["error"].is_string() && !line.contains('\n'),
        (Ok(ours), Some(text), None) => {
            let generated: Vec<[usize; 2]> =
                ours.generated.iter().map(|range| [range.start, range.end]).collect();
            let expected = case.get("generated").cloned().unwrap_or_else(|| json!([]));
            ours.text == text && json!(generated) == expected
        }
        _ => false,
    };
    (!alike).then(|| format!("{source}\n  here:   {ours:?}\n  jinja2: {case}"))
}

/// One construct each; `refused` are those that are errors here only.
#[test]
fn snippets_render_as_by_jinja2() {
    let golden = golden("snippets.json");
    let cases = golden["cases"].as_array().unwrap();
    let differ =
        |case: &Json| difference(case["template"].as_str().unwrap(), &golden["given"], case);
    let differences: Vec<String> = cases.iter().filter_map(differ).collect();
    assert!(cases.len() > 800 && differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn popular_templates_render_as_by_transformers() {
    let golden = golden("popular.json");
    let dir = format!("{}/tests/golden/templates/popular", env!("CARGO_MANIFEST_DIR"));
    let cases = golden["cases"].as_array().unwrap();
    let differ = |case: &Json| {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(format!("{dir}/{name}")).unwrap();
        difference(&source, &golden["conversations"][case["conversation"].as_str().unwrap()], case)
            .map(|found| format!("{name}: {found}"))
    };
    let differences: Vec<String> = cases.iter().filter_map(differ).collect();
    assert!(cases.len() > 200 && differences.is_empty(), "{}", differences.join("\n"));
}
