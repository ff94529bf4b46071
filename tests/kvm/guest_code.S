# What the vCPU runs: 64-bit, identity-mapped, no stack. rbx: address of the control block, r8: of guest RAM.
# Parks by OUT to port 0x10 and obeys the operation that it finds then. The layout of the control block is in tiny_vmm.h.

.section .rodata
.globl godwit_guest_code, godwit_guest_code_end
godwit_guest_code:
park:
    outb %al, $0x10
    movq 0(%rbx), %rax
    cmpq $1, %rax
    je write_pages
    cmpq $2, %rax
    je read_pages
    cmpq $3, %rax
    je write_at_random
    jmp park

# Four kinds of write in turn, each of a value that no page has held.
write_pages:
    xorq %r9, %r9
1:  cmpq 8(%rbx), %r9
    jae park
    movl 4096(%rbx,%r9,4), %eax
    shlq $12, %rax
    addq %r8, %rax
    movq %r9, %rdx
    shlq $6, %rdx
    andq $0xfc0, %rdx
    addq %rdx, %rax
    incq %r11
    movq %r9, %rdx
    andq $3, %rdx
    jz 2f
    cmpq $1, %rdx
    je 3f
    cmpq $2, %rdx
    je 4f
    movl %r11d, 60(%rax)
    jmp 5f
2:  movq %r11, (%rax)
    jmp 5f
3:  movq %r11, %rdx
    lock xaddq %rdx, (%rax)
    jmp 5f
4:  movq %rax, %rdi
    movq %r11, %rax
    movq $5, %rcx
    rep stosq
5:  incq %r9
    jmp 1b

read_pages:
    xorq %r9, %r9
1:  cmpq 8(%rbx), %r9
    jae park
    movl 4096(%rbx,%r9,4), %eax
    shlq $12, %rax
    movq (%r8,%rax), %rdx
    incq %r9
    jmp 1b

# Until told to stop: xorshift picks page and word.
write_at_random:
    movq 32(%rbx), %rcx
1:  movq %rcx, %rdx
    shlq $13, %rdx
    xorq %rdx, %rcx
    movq %rcx, %rdx
    shrq $7, %rdx
    xorq %rdx, %rcx
    movq %rcx, %rdx
    shlq $17, %rdx
    xorq %rdx, %rcx
    movq %rcx, %rax
    shrq $20, %rax
    andq 24(%rbx), %rax
    shlq $12, %rax
    addq %r8, %rax
    incq %r11
    movq %rcx, %rdx
    andq $0xff8, %rdx
    movq %r11, (%rax,%rdx)
    incq 40(%rbx)
    cmpq $0, 16(%rbx)
    je 1b
    movq %rcx, 32(%rbx)
    jmp park
godwit_guest_code_end:

.section .note.GNU-stack,"",@progbits
