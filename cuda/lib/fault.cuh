// What a kernel says when it meets a value that only the device could see to be wrong. The host
// looks at the word whenever it waits for results.
#pragma once
#include "lib/kernel.cuh"

constexpr uint32_t FAULT_TOKEN = 1;    // a token id outside the vocabulary
constexpr uint32_t FAULT_PAGE = 2;     // a page outside the KV-cache
constexpr uint32_t FAULT_ROW = 3;      // a row outside its tensor
constexpr uint32_t FAULT_LENGTHS = 4;  // sequence lengths that do not fit the batch
constexpr uint32_t FAULT_LOGITS = 5;   // logits from which no token can be drawn

DEV void report_fault(uint32_t* word, uint32_t fault) { atomic_max_u32(word, fault); }
