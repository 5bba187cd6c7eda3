/* families.c - templates for models that bring none: the forms of turns that families of models were tuned on, as Jinja texts. A family is
 * chosen by the marks of turns among the vocabulary's special tokens; forms that are written in plain words are there by name. None of them
 * knows tools: what is said of these stands in the messages (messages.c). */
#include "compute/chat/chat.h"

#include "compute/text/vocab.h"

/* Where the marks are the same for all, a turn is its role's mark, its content, and the mark of its end. */
#define EACH "{% for m in messages %}"
#define END "{% endfor %}"
#define PROMPT(text) "{% if add_generation_prompt %}{{ '" text "' }}{% endif %}"
/* What the system says goes before what the user says next: `form` has it as ns.system. */
#define SYSTEM_TO_USER(before, after) \
    "{% set ns = namespace(system='') %}" EACH "{% if m.role in ['system', 'developer'] %}" \
    "{% set ns.system = ns.system ~ '" before "' ~ m.content ~ '" after "' %}{% elif m.role == 'user' %}"

static const struct sh_chat_builtin families[] = {
    {"phi4",
     EACH "{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}" END PROMPT("<|im_start|>assistant<|im_sep|>"),
     {"<|im_start|>", "<|im_sep|>", "<|im_end|>"}, {NULL}},
    {"chatml",
     EACH "{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}" END PROMPT("<|im_start|>assistant\\n"),
     {"<|im_start|>", "<|im_end|>"}, {NULL}},
    {"llama3",
     "{{ bos_token }}" EACH "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}" END
     PROMPT("<|start_header_id|>assistant<|end_header_id|>\\n\\n"),
     {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, {NULL}},
    {"gemma",
     "{{ bos_token }}" SYSTEM_TO_USER("", "\\n\\n") "{{ '<start_of_turn>user\\n' ~ ns.system ~ m.content | trim ~ '<end_of_turn>\\n' }}"
     "{% set ns.system = '' %}{% else %}{{ '<start_of_turn>model\\n' ~ m.content | trim ~ '<end_of_turn>\\n' }}{% endif %}" END
     PROMPT("<start_of_turn>model\\n"),
     {"<start_of_turn>", "<end_of_turn>"}, {NULL}},
    {"command-r",
     "{{ bos_token }}" EACH "{{ '<|START_OF_TURN_TOKEN|>' }}{% if m.role == 'user' %}{{ '<|USER_TOKEN|>' }}"
     "{% elif m.role == 'assistant' %}{{ '<|CHATBOT_TOKEN|>' }}{% else %}{{ '<|SYSTEM_TOKEN|>' }}{% endif %}"
     "{{ m.content ~ '<|END_OF_TURN_TOKEN|>' }}" END PROMPT("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
     {"<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"}, {NULL}},
    {"deepseek",
     "{{ bos_token }}" EACH "{% if m.role == 'user' %}{{ '<｜User｜>' ~ m.content }}{% elif m.role == 'assistant' %}"
     "{{ '<｜Assistant｜>' ~ m.content ~ eos_token }}{% else %}{{ m.content }}{% endif %}" END PROMPT("<｜Assistant｜>"),
     {"<｜User｜>", "<｜Assistant｜>"}, {NULL}},
    {"granite",
     EACH "{{ '<|start_of_role|>' ~ m.role ~ '<|end_of_role|>' ~ m.content ~ '<|end_of_text|>\\n' }}" END
     PROMPT("<|start_of_role|>assistant<|end_of_role|>"),
     {"<|start_of_role|>", "<|end_of_role|>"}, {NULL}},
    {"gpt-oss",
     EACH "{% if m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|end|>' }}{% else %}"
     "{{ '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' }}{% endif %}" END PROMPT("<|start|>assistant"),
     {"<|start|>", "<|channel|>", "<|message|>", "<|end|>"}, {NULL}},
    {"glm4",
     "{{ '[gMASK]<sop>' }}" EACH "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content }}" END PROMPT("<|assistant|>\\n"),
     {"[gMASK]", "<sop>", "<|user|>", "<|assistant|>"}, {"<|user|>"}},
    {"phi3",
     EACH "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' }}" END PROMPT("<|assistant|>\\n"),
     {"<|user|>", "<|assistant|>", "<|end|>"}, {NULL}},
    {"mistral-v7",
     "{{ bos_token }}" EACH "{% if m.role == 'user' %}{{ '[INST]' ~ m.content ~ '[/INST]' }}{% elif m.role == 'assistant' %}"
     "{{ m.content ~ eos_token }}{% else %}{{ '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}{% endif %}" END,
     {"[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"}, {NULL}},
    {"mistral",
     "{{ bos_token }}" SYSTEM_TO_USER("", "\\n\\n") "{{ '[INST] ' ~ ns.system ~ m.content ~ '[/INST]' }}{% set ns.system = '' %}"
     "{% else %}{{ ' ' ~ m.content | trim ~ eos_token }}{% endif %}" END,
     {"[INST]", "[/INST]"}, {NULL}},
    {"zephyr", EACH "{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ eos_token ~ '\\n' }}" END PROMPT("<|assistant|>\\n"), {NULL}, {"<|user|>"}},
    {"llama2",
     SYSTEM_TO_USER("<<SYS>>\\n", "\\n<</SYS>>\\n\\n") "{{ bos_token ~ '[INST] ' ~ ns.system ~ m.content | trim ~ ' [/INST]' }}"
     "{% set ns.system = '' %}{% else %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}{% endif %}" END,
     {NULL}, {"[INST]"}},
    {"vicuna",
     EACH "{% if m.role == 'user' %}{{ 'USER: ' ~ m.content ~ ' ' }}{% elif m.role == 'assistant' %}"
     "{{ 'ASSISTANT: ' ~ m.content ~ eos_token }}{% else %}{{ m.content ~ ' ' }}{% endif %}" END PROMPT("ASSISTANT:"),
     {NULL}, {"USER:"}},
    {"alpaca",
     EACH "{% if m.role == 'user' %}{{ '### Instruction:\\n' ~ m.content ~ '\\n\\n' }}{% elif m.role == 'assistant' %}"
     "{{ '### Response:\\n' ~ m.content ~ '\\n\\n' }}{% else %}{{ m.content ~ '\\n\\n' }}{% endif %}" END PROMPT("### Response:\\n"),
     {NULL}, {"### Instruction:"}},
    {"plain",
     EACH "{% if m.role == 'user' %}{{ 'User: ' }}{% elif m.role == 'assistant' %}{{ 'Assistant: ' }}{% else %}{{ 'System: ' }}{% endif %}"
     "{{ m.content ~ '\\n' }}" END PROMPT("Assistant:"),
     {NULL}, {"\nUser:", "\nSystem:"}},
};

const struct sh_chat_builtin *sh_chat_builtin_at(size_t index) { return index < SH_COUNT(families) ? &families[index] : NULL; }

const struct sh_chat_builtin *sh_chat_builtin_find(const char *name) {
    for (size_t i = 0; i < SH_COUNT(families); i++) {
        if (strcmp(families[i].name, name) == 0) return &families[i];
    }
    return NULL;
}

const struct sh_chat_builtin *sh_chat_builtin_choose(const struct sh_vocab *v) {
    for (size_t i = 0; i < SH_COUNT(families); i++) {
        const char *const *tokens = families[i].tokens;
        size_t n = 0;
        while (n < SH_COUNT(families[i].tokens) && tokens[n] != NULL && sh_vocab_find_special(v, tokens[n], strlen(tokens[n])) >= 0) n++;
        if (n > 0 && (n == SH_COUNT(families[i].tokens) || tokens[n] == NULL)) return &families[i];
    }
    return &families[SH_COUNT(families) - 1];
}
