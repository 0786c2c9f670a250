//! An interpreter for the part of Python's pickle language that `torch.save` needs to describe
//! tensors. It is not a pickle reader: it holds no code to call, so nothing a file says can run,
//! and any opcode or global beyond that part is an error that names it.
//!
//! Values live in one arena and are named by index, so sharing costs nothing, cycles are harmless,
//! and memory is linear in the size of the pickle.

use super::SourceDType;
use super::names::quoted;
use crate::base::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// PyTorch's own limit on dimensions; also keeps a shared huge shape from being copied often.
const MAX_RANK: usize = 64;

/// A tensor of the pickle: a strided window into a storage that lies elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledTensor<'a> {
    pub(super) storage: Storage<'a>,
    /// First element, counted in elements of the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Step of each dimension, in elements.
    pub(super) stride: Vec<usize>,
}

/// A storage named by a persistent id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub(super) dtype: SourceDType,
    pub(super) key: &'a str,
    /// Elements.
    pub(super) numel: usize,
}

/// Reads the pickle of a state dict and returns its tensors by name. Entries that are no tensors
/// are passed over. Errors do not name the file; the caller does.
pub(super) fn read_state_dict(data: &[u8]) -> Result<BTreeMap<String, PickledTensor<'_>>> {
    let mut machine = Machine { data, ..Machine::default() };
    let root = machine.run()?;
    let Value::Dict(items) = &machine.arena[root] else {
        return Err(Error::user("holds no dict of tensors; save model.state_dict()"));
    };
    let mut tensors = BTreeMap::new();
    let mut others = Vec::new();
    for &(key, value) in items {
        match (&machine.arena[key], &machine.arena[value]) {
            (Value::Str(name), Value::Tensor(_)) if tensors.contains_key(*name) => {
                return Err(Error::user(format!("tensor {} appears twice", quoted(name))));
            }
            (Value::Str(name), Value::Tensor(tensor)) => {
                tensors.insert((*name).to_owned(), tensor.clone());
            }
            (_, Value::Tensor(_)) => return Err(Error::user("a tensor's name is not a string")),
            (Value::Str(name), _) if others.len() < 3 => others.push(quoted(name)),
            _ => {}
        }
    }
    if tensors.is_empty() {
        return Err(Error::user(format!(
            "holds no tensors at its top level (keys: {}); save model.state_dict() alone",
            others.join(", ")
        )));
    }
    Ok(tensors)
}

type Id = usize;

enum Value<'a> {
    /// None, a bool, a float, a huge integer or a list: no tensor is built from it.
    Other,
    Int(i64),
    Str(&'a str),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(PickledTensor<'a>),
}

/// The globals that may be named.
#[derive(Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageClass(SourceDType),
}

#[derive(Default)]
struct Machine<'a> {
    data: &'a [u8],
    at: usize,
    arena: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Stack heights at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs to STOP and returns the value on top.
    fn run(&mut self) -> Result<Id> {
        loop {
            let op = self.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.step(op)?;
        }
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            // PROTO, FRAME
            0x80 => match self.byte()? {
                2..=5 => {}
                n => return Err(self.bad(&format!("protocol {n} is not known"))),
            },
            0x95 => {
                self.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            // None, True, False, a float, an empty list
            b'N' | 0x88 | 0x89 | b']' => self.push(Value::Other),
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let x = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(x.into()));
            }
            b'K' => {
                let x = self.byte()?;
                self.push(Value::Int(x.into()));
            }
            b'M' => {
                let x = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(x.into()));
            }
            0x8a => self.long()?,
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                self.string(n.into())?;
            }
            0x8c => {
                let n = self.byte()?;
                self.string(n.into())?;
            }
            0x8d => {
                let n = u64::from_le_bytes(self.array()?);
                self.string(n)?;
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => self.short_tuple(op - 0x84)?,
            b's' | b'u' => self.set_items(op)?,
            // APPEND, APPENDS: the content of lists is of no use.
            b'a' => {
                self.pop()?;
            }
            b'e' => {
                self.pop_mark()?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo_op(op)?,
            b'c' | b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
                if op == b'i' {
                    return Err(self.bad("INST is not used for tensors"));
                }
            }
            0x93 => self.stack_global()?,
            b'Q' => self.persistent_id()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Err(self.bad(&format!("opcode 0x{op:02x} is not used for tensors"))),
        }
        Ok(())
    }

    fn bad(&self, what: &str) -> Error {
        Error::user(format!(
            "bad pickle at byte {}: {what}; convert the file to safetensors",
            self.at
        ))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, _)) = self.data[self.at..].split_at_checked(n) else {
            return Err(self.bad("it is cut short"));
        };
        self.at += n;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn utf8(&mut self, n: usize) -> Result<&'a str> {
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes).map_err(|_| self.bad("a string is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let Some(n) = self.data[self.at..].iter().position(|&b| b == b'\n') else {
            return Err(self.bad("it is cut short"));
        };
        let line = self.utf8(n)?;
        self.at += 1;
        Ok(line)
    }

    fn string(&mut self, n: u64) -> Result<()> {
        let text = self.utf8(usize::try_from(n).unwrap_or(usize::MAX))?;
        self.push(Value::Str(text));
        Ok(())
    }

    /// LONG1: a little-endian two's complement number of up to 255 bytes. No size or place needs
    /// more than eight; a wider one (a random seed, say) is passed over like a float.
    fn long(&mut self) -> Result<()> {
        let n = self.byte()?;
        let bytes = self.take(n.into())?;
        if bytes.len() > 8 {
            self.push(Value::Other);
            return Ok(());
        }
        let sign = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.arena.len());
        self.arena.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() > self.marks.last().copied().unwrap_or(0)
            && let Some(id) = self.stack.pop()
        {
            return Ok(id);
        }
        Err(self.bad("the stack is empty"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.bad("a mark is missing")),
        }
    }

    fn short_tuple(&mut self, n: u8) -> Result<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<Id>>>()?;
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    /// SETITEM, SETITEMS
    fn set_items(&mut self, op: u8) -> Result<()> {
        let items = if op == b'u' {
            self.pop_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        let target = self.pop()?;
        self.stack.push(target);
        match &mut self.arena[target] {
            Value::Dict(dict) if items.len() % 2 == 0 => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err(self.bad("items are set on what is no dict")),
        }
    }

    /// BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
    fn memo_op(&mut self, op: u8) -> Result<()> {
        let key = match op {
            b'q' | b'h' => self.byte()?.into(),
            0x94 => self.memo.len() as u32,
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(op, b'h' | b'j') {
            let Some(&id) = self.memo.get(&key) else {
                return Err(self.bad("an unknown memo entry is used"));
            };
            self.stack.push(id);
        } else {
            let id = self.pop()?;
            self.stack.push(id);
            self.memo.insert(key, id);
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let storage = SourceDType::of_storage(name);
        let global = match (module, name, storage) {
            ("collections", "OrderedDict", _) => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2", _) => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter", _) => Global::RebuildParameter,
            ("torch", _, Some(dtype)) => Global::StorageClass(dtype),
            _ => {
                return Err(Error::user(format!(
                    "its pickle names the global {}, which would run code; convert the file to \
                     safetensors where you trust it",
                    quoted(&format!("{module}.{name}"))
                )));
            }
        };
        self.push(Value::Global(global));
        Ok(())
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.arena[module], &self.arena[name]) {
            (&Value::Str(module), &Value::Str(name)) => self.global(module, name),
            _ => Err(self.bad("a global's name is not a string")),
        }
    }

    /// BINPERSID: `("storage", class, key, location, numel)`.
    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        if let Value::Tuple(items) = &self.arena[id]
            && let [tag, class, key, _, numel] = items[..]
            && let Value::Str("storage") = self.arena[tag]
            && let Value::Global(Global::StorageClass(dtype)) = self.arena[class]
            && let Value::Str(key) = self.arena[key]
            && let Some(numel) = self.index(numel)
        {
            self.push(Value::Storage(Storage { dtype, key, numel }));
            return Ok(());
        }
        Err(self.bad("a persistent id names no storage"))
    }

    fn reduce(&mut self) -> Result<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let (Value::Tuple(args), &Value::Global(callee)) = (&self.arena[args], &self.arena[callee])
        else {
            return Err(self.bad("REDUCE calls what is no global"));
        };
        match (callee, &args[..]) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            // Then: requires_grad, backward_hooks, and in newer files metadata.
            (Global::RebuildTensor, &[storage, offset, shape, stride, _, _])
            | (Global::RebuildTensor, &[storage, offset, shape, stride, _, _, _]) => {
                let Some(tensor) = self.tensor(storage, offset, shape, stride) else {
                    return Err(self.bad("a tensor's storage, offset, shape or stride is wrong"));
                };
                self.push(Value::Tensor(tensor));
            }
            (Global::RebuildParameter, &[data, _, _])
                if matches!(self.arena[data], Value::Tensor(_)) =>
            {
                self.stack.push(data);
            }
            _ => return Err(self.bad("unexpected arguments of REDUCE")),
        }
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, stride: Id) -> Option<PickledTensor<'a>> {
        let Value::Storage(storage) = self.arena[storage] else { return None };
        let (shape, stride) = (self.indices(shape)?, self.indices(stride)?);
        let offset = self.index(offset)?;
        (shape.len() == stride.len()).then_some(PickledTensor { storage, offset, shape, stride })
    }

    fn index(&self, id: Id) -> Option<usize> {
        match self.arena[id] {
            Value::Int(x) => usize::try_from(x).ok(),
            _ => None,
        }
    }

    fn indices(&self, id: Id) -> Option<Vec<usize>> {
        match &self.arena[id] {
            Value::Tuple(ids) if ids.len() <= MAX_RANK => {
                ids.iter().map(|&i| self.index(i)).collect()
            }
            _ => None,
        }
    }

    /// BUILD sets attributes. On a dict (`_metadata` of a state dict) they are of no use and
    /// dropped; on anything else they could mean a tensor subclass.
    fn build(&mut self) -> Result<()> {
        let (state, target) = (self.pop()?, self.pop()?);
        self.stack.push(target);
        match (&self.arena[target], &self.arena[state]) {
            (Value::Dict(_), Value::Dict(_)) => Ok(()),
            _ => Err(self.bad("BUILD sets attributes on what is no dict")),
        }
    }
}
