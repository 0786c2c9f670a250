use super::*;
use serde_json::json;

fn parsed(value: Value) -> Row {
    parse_row(&value).unwrap()
}

fn refused(value: Value) -> String {
    parse_row(&value).unwrap_err()
}

/// Role and text of every message of a conversation, prompt first, then the good answer.
fn told(row: &Row) -> Vec<(String, String)> {
    let Some(Prompt::Chat(prompt)) = &row.prompt else { panic!("{row:?} is no conversation") };
    let answer = match &row.chosen {
        Some(Answer::Chat(messages)) => messages.clone(),
        Some(Answer::Text { .. }) => panic!("a text behind a conversation"),
        None => vec![],
    };
    let all = prompt.iter().chain(&answer);
    all.map(|m| (m.role().to_owned(), m.content().into_owned())).collect()
}

fn turns(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(r, c)| (r.to_string(), c.to_string())).collect()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

#[test]
fn conversations_in_the_spellings_of_the_field() {
    let asked = turns(&[("user", "why?"), ("assistant", "so")]);
    let with_system = turns(&[("system", "kind"), ("user", "why?"), ("assistant", "so")]);
    for (row, expected) in [
        (json!({"messages": [user("why?"), assistant("so")]}), &asked),
        (
            json!({"conversations": [
                {"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]}),
            &asked,
        ),
        (
            json!({"conversation": [
                {"role": "user", "content": "why?"}, {"from": "assistant", "value": "so"}]}),
            &asked,
        ),
        (json!({"instruction": "why?", "input": "", "output": "so"}), &asked),
        (json!({"question": "why?", "answer": "so"}), &asked),
        (json!({"query": "why?", "response": "so"}), &asked),
        (json!({"input": "why?", "output": "so"}), &asked),
        (json!({"prompt": user("why?"), "completion": assistant("so")}), &asked),
        (json!({"prompt": [user("why?")], "completion": "so"}), &asked),
        (
            json!({"messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "wh"}, {"type": "text", "text": "y?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]}),
            &asked,
        ),
        (json!({"system": "kind", "messages": [user("why?"), assistant("so")]}), &with_system),
        (
            json!({"system": "kind", "question": "why?", "chosen": "so", "rejected": "no"}),
            &with_system,
        ),
        (json!({"system_prompt": "kind", "prompt": "why?", "completion": "so"}), &with_system),
        (
            json!({"system": "kind", "conversations": [{"from": "system", "value": "kind"},
                {"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]}),
            &with_system,
        ),
    ] {
        let row = parsed(row);
        assert_eq!(&told(&row), expected);
        assert!(row.unused.is_empty(), "{row:?}");
    }
    let alpaca = json!({"instruction": "add", "input": "1 2", "output": "3",
        "history": [["hi", "hello"]]});
    let expected =
        [("user", "hi"), ("assistant", "hello"), ("user", "add\n1 2"), ("assistant", "3")];
    assert_eq!(told(&parsed(alpaca)), turns(&expected));
}

#[test]
fn pairs_in_the_spellings_of_the_field() {
    let expected = turns(&[("user", "why?"), ("assistant", "so")]);
    let (whole, bad) = ([user("why?"), assistant("so")], [user("why?"), assistant("no")]);
    for row in [
        // What UltraFeedback's binarised copies have.
        json!({"prompt": "why?", "prompt_id": "7", "chosen": whole, "rejected": bad,
            "messages": whole, "score_chosen": 8.0, "score_rejected": 4.0}),
        json!({"messages": [user("why?")], "chosen": assistant("so"), "rejected": assistant("no")}),
        json!({"messages": whole, "chosen": [assistant("so")], "rejected": [assistant("no")]}),
        json!({"conversations": [{"from": "human", "value": "why?"}],
            "chosen": {"from": "gpt", "value": "so"}, "rejected": {"from": "gpt", "value": "no"}}),
        json!({"prompt": [user("why?")], "chosen": assistant("so"), "rejected": assistant("no")}),
        json!({"instruction": "why?", "chosen": "so", "rejected": "no"}),
    ] {
        let row = parsed(row);
        assert_eq!(told(&row), expected);
        assert_eq!(row.rejected.unwrap().text(), "no");
        assert!(row.unused.is_empty());
    }
    // They part before their last message, at different lengths too: what they share is the prompt.
    let long = json!({"chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
        "rejected": [user("a"), assistant("x")]});
    let row = parsed(long);
    assert_eq!(row.prompt, Some(Prompt::Chat(vec![Message::new("user", "a")])));
    let Some(Answer::Chat(chosen)) = &row.chosen else { panic!() };
    assert_eq!((chosen.len(), row.rejected.unwrap().text()), (3, "x".into()));
    let part = json!({"chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
        "rejected": [user("a"), assistant("b")]});
    assert_eq!(
        refused(part),
        "one of \"chosen\" and \"rejected\" is only the beginning of the other"
    );
}

#[test]
fn tools_and_what_templates_take_beside_messages() {
    let call = json!({"role": "assistant", "content": null, "tool_calls":
        [{"type": "function", "id": "1", "function": {"name": "look", "arguments": {"at": 3}}}]});
    let tool = json!({"type": "function", "function": {"name": "look"}});
    let messages = json!([user("why?"), call, {"role": "tool", "tool_call_id": "1", "content": "4"},
        assistant("so")]);
    for tools in [json!([tool]), json!(json!([tool]).to_string())] {
        let row =
            parsed(json!({"messages": messages, "tools": tools, "documents": [{"text": "d"}],
            "chat_template_kwargs": {"enable_thinking": false}}));
        let context = row.context.as_ref().unwrap();
        assert_eq!(context.tools, Some(json!([tool])));
        assert_eq!(context.documents, Some(json!([{"text": "d"}])));
        assert_eq!(context.variables["enable_thinking"], false);
        let Some(Prompt::Chat(prompt)) = &row.prompt else { panic!() };
        assert_eq!(prompt[1].fields(), &call);
        assert_eq!(prompt[2].fields()["tool_call_id"], "1");
    }
    let old = json!({"functions": [{"name": "look"}], "messages": [user("why?"),
        {"role": "assistant", "content": "",
            "function_call": {"name": "look", "arguments": "{}"}}]});
    let row = parsed(old);
    assert_eq!(
        row.context.as_ref().unwrap().tools.as_ref().unwrap()[0]["function"]["name"],
        "look"
    );
    let Some(Answer::Chat(answer)) = row.chosen else { panic!() };
    assert_eq!(answer[0].fields()["tool_calls"][0]["function"]["name"], "look");
    // Nothing given is nothing.
    assert!(parsed(json!({"prompt": "a", "tools": [], "documents": null})).context.is_none());
}

#[test]
fn keys_are_used_harmless_named_or_refused() {
    let row = parsed(json!({"prompt": "a", "id": 1, "source": "x", "flavour": "x", "notes": null,
        "grade": 3}));
    assert_eq!(row.unused, ["flavour", "grade"]);
    let weight = |m: Value| match parsed(json!({"messages": [user("q"), m]})).chosen {
        Some(Answer::Chat(messages)) => messages[0].weight(),
        _ => panic!(),
    };
    let m = |key: &str, v: Value| json!({"role": "assistant", "content": "a", key: v});
    assert_eq!(weight(assistant("a")), None);
    assert_eq!(weight(m("weight", json!(0))), Some(0.0));
    assert_eq!(weight(m("weight", json!(0.5))), Some(0.5));
    assert_eq!(weight(m("train", json!(false))), Some(0.0));
    assert_eq!(weight(m("loss", json!(true))), Some(1.0));
    let messages = json!([user("q"), assistant("a")]);
    for (row, line) in [
        (
            json!({"messages": [user("q"), m("weight", json!("much"))]}),
            "\"weight\" in a message of \"messages\" is neither a boolean nor a number from 0 on",
        ),
        (
            json!({"messages": [{"role": "user", "content": "q", "train": true}, assistant("a")]}),
            "a message of \"messages\" asks to be learned by \"train\", but only the assistant's \
             are",
        ),
        (
            json!({"messages": messages, "images": ["a.png"]}),
            "key \"images\" holds media; only text can be trained on",
        ),
        (
            json!({"messages": [
                {"role": "user", "content": [{"type": "image_url"}]}, assistant("a")]}),
            "the content of a message of \"messages\" has a part of the type \"image_url\"; only \
             text is read",
        ),
        (
            json!({"prompt": "a", "completion": "b", "label": false}),
            "key \"label\" is false: it marks an undesirable answer (KTO), which no step here \
             learns from",
        ),
        (
            json!({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}),
            "key \"margin\" asks for a margin between the answers; the loss of the reward model \
             has none, leave the key out",
        ),
        (
            json!({"messages": messages, "weight": 2}),
            "key \"weight\" gives the row a weight; rows count alike, messages may have a weight",
        ),
        (
            json!({"text": "a", "input_ids": [1]}),
            "key \"input_ids\" is of rows that are tokenised already; give their text, without it",
        ),
        (
            json!({"messages": messages, "tools": "look"}),
            "key \"tools\" is a string, but no JSON in it: expected value at line 1 column 1",
        ),
        (
            json!({"system": "b", "messages": [{"role": "system", "content": "c"}, user("q")]}),
            "holds a key \"system\" and another system message; keep one",
        ),
        (
            json!({"conversations": [{"from": "martian", "value": "q"}]}),
            "a message of \"conversations\" is from \"martian\"; known are human, user, prompter, \
             gpt, assistant, model, bot, chatgpt, bing, bard, system, tool, observation, \
             function_response",
        ),
        (
            json!({"messages": [user("q"), {"role": "assistant", "content": null}]}),
            "a message of \"messages\" has no string \"content\"",
        ),
    ] {
        assert_eq!(refused(row), line);
    }
    assert_eq!(parsed(json!({"prompt": "a", "completion": "b", "label": true})).unused.len(), 0);
}

#[test]
fn a_system_message_of_the_row_comes_first_in_every_format() {
    let told_by = |row: Value| told(&parsed(row));
    let expected = turns(&[("system", "s"), ("user", "why?"), ("assistant", "so")]);
    let (whole, bad) = ([user("why?"), assistant("so")], [user("why?"), assistant("no")]);
    for row in [
        json!({"system": "s", "chosen": whole, "rejected": bad}),
        json!({"system": "s", "chosen": whole, "rejected": bad, "messages": whole}),
        json!({"system": "s", "prompt": "why?", "chosen": whole, "rejected": bad}),
        json!({"system": "s", "prompt": "why?", "completion": [assistant("so")]}),
        json!({"system": "s", "prompt": [user("why?")], "completion": whole}),
    ] {
        assert_eq!(told_by(row.clone()), expected, "{row}");
    }
    for (row, line) in [
        (
            json!({"system": "s", "text": "t"}),
            "holds a key \"system\" beside text, which has no place for it; put it there",
        ),
        (
            json!({"system": "s", "system_prompt": "t", "prompt": "p"}),
            "keys \"system\" and \"system_prompt\" differ; keep one",
        ),
    ] {
        assert_eq!(refused(row), line);
    }
}

/// Exporters add nulls and ids, and trim; what is said is the same.
#[test]
fn a_prompt_is_not_said_twice() {
    let expected = turns(&[("user", "why?"), ("assistant", "so")]);
    let asks = json!({"role": "user", "content": "why?\n", "tool_calls": null, "id": 3});
    let pair = json!({"prompt": [user("why?")], "chosen": [asks, assistant("so")],
        "rejected": [user("why?"), assistant("no")]});
    let trimmed: Vec<_> =
        told(&parsed(pair)).into_iter().map(|(r, c)| (r, c.trim().to_owned())).collect();
    assert_eq!(trimmed, expected);
    let system = json!({"role": "system", "content": "s"});
    let with_system = turns(&[("system", "s"), ("user", "why?"), ("assistant", "so")]);
    for (prompt, chosen) in [
        (json!([user("why?")]), json!([system, user("why?"), assistant("so")])),
        (json!([system, user("why?")]), json!([user("why?"), assistant("so")])),
    ] {
        assert_eq!(told(&parsed(json!({"prompt": prompt, "completion": chosen}))), with_system);
    }
    let other = json!({"prompt": [user("who?")], "completion": [user("why?"), assistant("so")]});
    assert_eq!(
        refused(other),
        "an answer holds a conversation that does not begin with the prompt"
    );
    let other = json!({"prompt": "who?", "messages": [user("why?"), assistant("so")]});
    assert_eq!(
        refused(other),
        "key \"prompt\" is not in the conversation beside it; keep one of them"
    );
}

#[test]
fn speakers_labels_and_variables_in_other_spellings() {
    let says = |role: &str, text: &str| json!({"role": role, "content": text});
    for (asks, answers) in [("human", "gpt"), ("User", "Assistant"), ("prompter", "model")] {
        let row = parsed(json!({"messages": [says(asks, "q"), says(answers, "a")]}));
        assert_eq!(told(&row), turns(&[("user", "q"), ("assistant", "a")]));
    }
    for label in [json!(false), json!(0), json!("False"), json!("false")] {
        for key in ["label", "kto_tag"] {
            let row = json!({"prompt": "a", "completion": "b", key: label});
            assert!(refused(row).starts_with(&format!("key {key:?} is false: it marks")));
        }
    }
    let kwargs = json!({"documents": [{"text": "d"}], "tools": [{"name": "f"}], "x": 1});
    let context = parsed(json!({"prompt": [user("q")], "chat_template_kwargs": kwargs})).context;
    let context = context.unwrap();
    assert_eq!(context.documents, Some(json!([{"text": "d"}])));
    assert_eq!(context.tools, Some(json!([{"name": "f"}])));
    assert_eq!(context.variables.len(), 1);
}
