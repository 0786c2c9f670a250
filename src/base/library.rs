//! Tables of the functions of libraries that are opened at run time.

/// Makes `Api`, a table of a library's functions, and `Api::find`, which fills it. Each line:
/// field, function, arguments, and what is returned if it is no `Code`, a number that the calling
/// module declares. The types are checked against the declarations in `sys`, a module that is made
/// from the library's header, in which such a number is an enumeration.
///
/// With `emulated "PREFIX";` first, `Api::emulated` is the table of the functions that the emulator
/// exports by the same names behind the prefix.
macro_rules! functions {
    (emulated $prefix:literal; Code = $code:ty; $($lines:tt)*) => {
        functions! { Code = $code; $($lines)* }
        functions! { @emulated $prefix; $($lines)* }
    };
    (@returned) => { Code };
    (@returned $ty:ty) => { $ty };
    (@emulated $prefix:literal; $(
        $field:ident = $symbol:ident ($($arg:ident: $ty:ty),*) $(-> $returned:ty)?;
    )*) => {
        #[cfg(feature = "emulator")]
        impl Api {
            /// The emulator's functions.
            pub(super) fn emulated() -> Api {
                unsafe extern "C" {
                    $(
                        #[link_name = concat!($prefix, stringify!($symbol))]
                        fn $field($($arg: $ty),*) -> functions!(@returned $($returned)?);
                    )*
                }
                Api { $($field,)* }
            }
        }
    };
    (Code = $code:ty; $(
        $field:ident = $symbol:ident ($($arg:ident: $ty:ty),*) $(-> $returned:ty)?;
    )*) => {
        /// The library's functions.
        pub(super) struct Api {
            $(pub(super) $field:
                unsafe extern "C" fn($($arg: $ty),*) -> functions!(@returned $($returned)?),)*
        }

        // Each line agrees with the declaration that was made from the header. What is a number
        // here is the enumeration there.
        const _: () = {
            type Code = $code;
            $(let _: unsafe fn($($ty),*) -> functions!(@returned $($returned)?) = sys::$symbol;)*
        };

        impl Api {
            /// Finds all functions by name; an error is the name of the first that is missing.
            fn find(
                symbol: &dyn Fn(&std::ffi::CStr) -> *mut std::ffi::c_void,
            ) -> std::result::Result<Api, &'static str> {
                $(
                    let name = concat!(stringify!($symbol), "\0").as_bytes();
                    let name = std::ffi::CStr::from_bytes_with_nul(name).expect("one nul");
                    let $field = symbol(name);
                    if $field.is_null() {
                        return Err(stringify!($symbol));
                    }
                )*
                // SAFETY: each symbol has the type that the header declares for its name, as
                // checked above; a `Code` is a u32 that is never read as the enumeration.
                Ok(unsafe {
                    Api {
                        $($field: std::mem::transmute::<
                            *mut std::ffi::c_void,
                            unsafe extern "C" fn($($ty),*) -> functions!(@returned $($returned)?),
                        >($field),)*
                    }
                })
            }
        }
    };
}

pub(crate) use functions;
