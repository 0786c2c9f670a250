// Tokens that end a sequence, in the parameters of kernels.
#pragma once

// As many as there is room for.
constexpr int MAX_EOS = 64;
