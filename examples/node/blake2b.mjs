// BLAKE2b with a digest of 8 bytes (RFC 7693), as a signed little-endian integer: what hashed string fields take.
// Node's own crypto has digests of 64 bytes only; these begin with other bytes.

const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => [...row].map((digit) => parseInt(digit, 16)));
const LINES = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15], [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];

const word = (value) => BigInt.asUintN(64, value);
const rotate = (value, bits) => word((value >> bits) | (value << (64n - bits)));

function compress(state, block, length, last) {
  const v = [...state, ...IV];
  v[12] ^= BigInt(length);
  if (last) v[14] = word(~v[14]);
  for (let round = 0; round < 12; round++) {
    const order = SIGMA[round % 10];
    LINES.forEach(([a, b, c, d], line) => {
      v[a] = word(v[a] + v[b] + block[order[2 * line]]);
      v[d] = rotate(v[d] ^ v[a], 32n);
      v[c] = word(v[c] + v[d]);
      v[b] = rotate(v[b] ^ v[c], 24n);
      v[a] = word(v[a] + v[b] + block[order[2 * line + 1]]);
      v[d] = rotate(v[d] ^ v[a], 16n);
      v[c] = word(v[c] + v[d]);
      v[b] = rotate(v[b] ^ v[c], 63n);
    });
  }
  return state.map((value, place) => value ^ v[place] ^ v[place + 8]);
}

export function blake2b64(text) {
  const bytes = new TextEncoder().encode(text);
  let state = [...IV];
  state[0] ^= 0x01010008n; // no key, a digest of 8 bytes
  for (let start = 0; start === 0 || start < bytes.length; start += 128) {
    const block = new Uint8Array(128);
    block.set(bytes.subarray(start, start + 128));
    const stop = Math.min(start + 128, bytes.length);
    state = compress(state, [...new BigUint64Array(block.buffer)], stop, stop === bytes.length);
  }
  return BigInt.asIntN(64, state[0]);
}
