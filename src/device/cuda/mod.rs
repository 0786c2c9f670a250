//! CUDA devices, real or emulated: contexts, streams, events, kernels, graphs, over a driver opened
//! at run time. A missing driver is an error value. No maths.

mod api;
#[cfg(all(test, feature = "emulator"))]
mod bug_tests;
pub mod constants;
pub mod corpus;
mod fault;
mod graph;
pub mod params;
mod stream;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub use graph::Graph;
pub use stream::{Event, Stream};

use crate::base::{Error, Result};
use api::{Api, Code, LOST, OUT_OF_MEMORY, SUCCESS};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUfunction, CUfunction_attribute, CUmemPool_attribute,
    CUmemoryPool, CUmodule,
};
use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

/// Fat binaries made by the build script: stem of the source, image. Empty without the `cuda`
/// feature.
#[cfg(feature = "cuda")]
mod images {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}

/// The properties of one GPU.
#[derive(Clone, Debug)]
pub struct Card {
    /// Name given by the driver.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory in bytes.
    pub memory: usize,
    /// Largest dynamic shared memory of a block, in bytes.
    pub shared: usize,
    /// Version of the driver's API, as 1000 major + 10 minor.
    pub driver: i32,
}

/// A device's context: made once, kept for the life of the process.
pub(super) struct Context {
    api: &'static Api,
    handle: CUcontext,
    emulated: bool,
    card: Card,
    modules: Vec<CUmodule>,
    /// Kernels met so far, with the dynamic shared memory each may take.
    functions: Mutex<HashMap<String, (CUfunction, usize)>>,
    /// Why nothing that is computed here is of use any more, and whether somebody was told.
    end: OnceLock<Error>,
    end_is_known: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: the driver allows calls from several threads at once, and the map is locked.
unsafe impl Sync for Context {}

/// Attributes of a device.
const MULTIPROCESSORS: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
const CAPABILITY_MAJOR: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
const CAPABILITY_MINOR: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
const SHARED_OPTIN: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
const FUNCTION_SHARED: CUfunction_attribute =
    CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
/// Bytes that a pool keeps.
const RELEASE_THRESHOLD: CUmemPool_attribute =
    CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
/// Dynamic shared memory in bytes that a kernel may take without asking.
const UNASKED_SHARED: usize = 48 << 10;

/// The real driver, opened once.
fn driver() -> Result<&'static Api> {
    static DRIVER: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| start(Api::open()?));
    driver.as_ref().map_err(|e| Error::resource(e.clone()))
}

/// The first call into a driver.
fn start(api: Api) -> std::result::Result<Api, String> {
    // SAFETY: takes no pointers.
    match unsafe { (api.init)(0) } {
        SUCCESS => Ok(api),
        code => Err(format!("the NVIDIA driver does not start: {}", api.describe(code))),
    }
}

/// All GPUs of the driver, without making a context on any. Fails where there is no driver, or none
/// that starts. Does not check that this binary has kernels for them.
pub fn cards() -> Result<Vec<Card>> {
    let api = driver()?;
    let mut count: c_int = 0;
    // SAFETY: a plain query with a pointer to a local.
    let code = unsafe { (api.device_count)(&raw mut count) };
    if code != SUCCESS {
        return Err(Error::resource(format!("cannot count GPUs: {}", api.describe(code))));
    }
    let card = |ordinal: c_int| {
        let mut device: CUdevice = 0;
        // SAFETY: a plain query with a pointer to a local.
        match unsafe { (api.device_get)(&raw mut device, ordinal) } {
            SUCCESS => Ok(describe(api, device)),
            code => Err(Error::resource(format!("GPU {ordinal}: {}", api.describe(code)))),
        }
    };
    (0..count).map(card).collect()
}

/// The context of CUDA device `ordinal`.
pub(super) fn card(ordinal: u32) -> Result<&'static Context> {
    static CARDS: Mutex<Option<HashMap<u32, &'static Context>>> = Mutex::new(None);
    let mut cards = CARDS.lock().unwrap_or_else(|e| e.into_inner());
    let cards = cards.get_or_insert_default();
    if let Some(context) = cards.get(&ordinal) {
        return Ok(context);
    }
    if !cfg!(feature = "cuda") {
        return Err(Error::resource(
            "this binary was built without CUDA kernels; build it with --features cuda",
        ));
    }
    let context: &'static Context = Box::leak(Box::new(Context::open(driver()?, ordinal, false)?));
    cards.insert(ordinal, context);
    Ok(context)
}

/// The context of the emulated device.
pub(super) fn emulated() -> Result<&'static Context> {
    #[cfg(feature = "emulator")]
    {
        static EMULATED: OnceLock<Result<Context>> = OnceLock::new();
        let open = || {
            let api = start(Api::emulated()).map_err(Error::internal)?;
            Context::open(Box::leak(Box::new(api)), 0, true)
        };
        EMULATED.get_or_init(open).as_ref().map_err(Clone::clone)
    }
    #[cfg(not(feature = "emulator"))]
    Err(Error::resource(
        "this binary was built without the emulator; build it with --features emulator",
    ))
}

impl Context {
    fn open(api: &'static Api, ordinal: u32, emulated: bool) -> Result<Context> {
        let fail = |what: &str, code: Code| {
            Error::resource(format!("CUDA device {ordinal}: {what}: {}", api.describe(code)))
        };
        let mut device: CUdevice = 0;
        let mut count: c_int = 0;
        // SAFETY: plain queries with pointers to locals.
        let code = unsafe { (api.device_count)(&raw mut count) };
        if code != SUCCESS {
            return Err(fail("cannot count devices", code));
        }
        if ordinal as c_int >= count {
            let line = format!("there is no CUDA device {ordinal}: the driver knows {count}");
            return Err(Error::resource(line));
        }
        let mut handle: CUcontext = std::ptr::null_mut();
        // SAFETY: the pointers are to locals; the context is made current before its pool is set,
        // and stays for the life of the process.
        unsafe {
            let code = (api.device_get)(&raw mut device, ordinal as c_int);
            if code != SUCCESS {
                return Err(fail("cannot be opened", code));
            }
            let code = (api.context_retain)(&raw mut handle, device);
            if code != SUCCESS {
                return Err(fail("cannot be used", code));
            }
            (api.context_set)(handle);
            let code = keep_memory(api, device);
            if code != SUCCESS {
                return Err(fail("has no memory pool", code));
            }
        }
        let card = describe(api, device);
        let mut context = Context {
            api,
            handle,
            emulated,
            card,
            modules: vec![],
            functions: Mutex::new(HashMap::new()),
            end: OnceLock::new(),
            end_is_known: AtomicBool::new(false),
        };
        context.load(ordinal)?;
        Ok(context)
    }

    /// Loads the kernels.
    fn load(&mut self, ordinal: u32) -> Result<()> {
        let mut images: Vec<(&str, &[u8])> = vec![];
        if self.emulated {
            images.push(("emulated", &[0]));
        } else {
            #[cfg(feature = "cuda")]
            images.extend(images::FATBINS);
        }
        for (name, image) in images {
            let mut module: CUmodule = std::ptr::null_mut();
            // SAFETY: the image is a whole fat binary made by nvcc (or ignored by the emulator).
            let code = unsafe { (self.api.module_load)(&raw mut module, image.as_ptr().cast()) };
            if code != SUCCESS {
                let (major, minor) = self.card.capability;
                return Err(Error::resource(format!(
                    "CUDA device {ordinal} ({}, compute capability {major}.{minor}) cannot load \
                     the kernels of {name}: {}; compute capability 8.0 and a driver for CUDA 13 \
                     are needed",
                    self.card.name,
                    self.api.describe(code)
                )));
            }
            self.modules.push(module);
        }
        Ok(())
    }

    /// Makes this context the calling thread's.
    fn enter(&self) {
        // SAFETY: the context lives as long as the process.
        unsafe { (self.api.context_set)(self.handle) };
    }

    /// Makes every later wait fail with `e`. Only the first counts.
    pub(super) fn end(&self, e: Error) {
        let _ = self.end.set(e);
    }

    /// Fails with the error given to `end`, if there is one.
    pub(super) fn ended(&self) -> Result<()> {
        let Some(e) = self.end.get() else { return Ok(()) };
        self.end_is_known.store(true, Ordering::Relaxed);
        Err(e.clone())
    }

    pub(super) fn end_is_known(&self) -> bool {
        self.end_is_known.load(Ordering::Relaxed)
    }

    /// The kernel of that name, allowed `shared` bytes of dynamic shared memory.
    fn function(&self, name: &str, shared: usize) -> Result<CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        if !functions.contains_key(name) {
            functions.insert(name.to_string(), (self.find(name)?, UNASKED_SHARED));
        }
        let (function, allowed) = functions.get_mut(name).expect("just inserted");
        if shared > *allowed {
            // SAFETY: a setting of a loaded function.
            let code =
                unsafe { (self.api.function_set)(*function, FUNCTION_SHARED, shared as i32) };
            self.check(code, format_args!("{name}: {shared} bytes of shared memory"))?;
            *allowed = shared;
        }
        Ok(*function)
    }

    fn find(&self, name: &str) -> Result<CUfunction> {
        let symbol =
            CString::new(name).map_err(|_| Error::internal(format!("kernel name {name:?}")))?;
        for module in &self.modules {
            let mut function: CUfunction = std::ptr::null_mut();
            // SAFETY: the module is loaded and the name ends in a nul.
            let code =
                unsafe { (self.api.module_function)(&raw mut function, *module, symbol.as_ptr()) };
            if code == SUCCESS {
                return Ok(function);
            }
        }
        Err(Error::internal(format!("there is no kernel {name}")))
    }

    /// An error unless `code` is success. A failure of the device is told by whatever call comes
    /// next.
    fn check(&self, code: Code, what: impl fmt::Display) -> Result<()> {
        match code {
            SUCCESS => Ok(()),
            OUT_OF_MEMORY => Err(Error::memory(format!(
                "out of GPU memory: {what}; use a smaller model, batch or sequence length"
            ))),
            code if LOST.contains(&code) => Err(Error::stopped(format!(
                "{what}: the device failed here or in work before it: {}; this process cannot use \
                 it any more; the same command starts anew, a run from its last checkpoint",
                self.explain(code)
            ))),
            code => Err(Error::internal(format!("{what}: {}", self.explain(code)))),
        }
    }

    fn explain(&self, code: Code) -> String {
        #[cfg(feature = "emulator")]
        if self.emulated {
            let text = api::emulator_error();
            if !text.is_empty() {
                return text;
            }
        }
        self.api.describe(code)
    }
}

/// Lets the device's memory pool keep what is given back, so that the cache of keys and values,
/// made and dropped in every iteration, costs no call into the operating system.
///
/// # Safety
/// The device's context must be current.
unsafe fn keep_memory(api: &Api, device: CUdevice) -> Code {
    let mut pool: CUmemoryPool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the pointers are to locals; the attribute's value is a u64.
    unsafe {
        match (api.pool_default)(&raw mut pool, device) {
            SUCCESS => (api.pool_set)(pool, RELEASE_THRESHOLD, (&raw mut threshold).cast()),
            code => code,
        }
    }
}

/// Reads the properties of a device; what the driver does not tell stays 0.
fn describe(api: &Api, device: CUdevice) -> Card {
    let mut name = [0u8; 128];
    let (mut memory, mut driver) = (0usize, 0);
    let attribute = |which: CUdevice_attribute| {
        let mut value: c_int = 0;
        // SAFETY: the pointer is to a local.
        unsafe { (api.device_attribute)(&raw mut value, which, device) };
        value
    };
    // SAFETY: the buffer's length is given, the pointers are to locals.
    unsafe {
        (api.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, device);
        (api.device_memory)(&raw mut memory, device);
        (api.driver_version)(&raw mut driver);
    }
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Card {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (attribute(CAPABILITY_MAJOR), attribute(CAPABILITY_MINOR)),
        multiprocessors: attribute(MULTIPROCESSORS).max(1) as u32,
        memory,
        shared: attribute(SHARED_OPTIN).max(0) as usize,
        driver,
    }
}
