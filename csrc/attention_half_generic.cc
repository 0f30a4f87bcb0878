#define RANVIER_T uint16_t
#define RANVIER_ATTENTION attention_generic_bf16
#include "attention_body.h"
