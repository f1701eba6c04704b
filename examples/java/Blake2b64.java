import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * BLAKE2b with a digest of 8 bytes (RFC 7693), as a little-endian long: what hashed string fields of a graph take.
 * Prints the hash of each line of the standard input: java Blake2b64.java < lines.txt
 */
public final class Blake2b64 {
    private static final long[] IV = {
        0x6a09e667f3bcc908L, 0xbb67ae8584caa73bL, 0x3c6ef372fe94f82bL, 0xa54ff53a5f1d36f1L,
        0x510e527fade682d1L, 0x9b05688c2b3e6c1fL, 0x1f83d9abfb41bd6bL, 0x5be0cd19137e2179L,
    };
    private static final String[] SIGMA = {
        "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
        "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
    };
    private static final int[][] LINES = {
        {0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15},
        {0, 5, 10, 15}, {1, 6, 11, 12}, {2, 7, 8, 13}, {3, 4, 9, 14},
    };

    private static void compress(long[] state, long[] block, long length, boolean last) {
        long[] v = Arrays.copyOf(state, 16);
        System.arraycopy(IV, 0, v, 8, 8);
        v[12] ^= length;
        v[14] = last ? ~v[14] : v[14];
        for (int round = 0; round < 12; round++) {
            for (int line = 0; line < 8; line++) {
                int a = LINES[line][0], b = LINES[line][1], c = LINES[line][2], d = LINES[line][3];
                String order = SIGMA[round % 10];
                v[a] += v[b] + block[Character.digit(order.charAt(2 * line), 16)];
                v[d] = Long.rotateRight(v[d] ^ v[a], 32);
                v[c] += v[d];
                v[b] = Long.rotateRight(v[b] ^ v[c], 24);
                v[a] += v[b] + block[Character.digit(order.charAt(2 * line + 1), 16)];
                v[d] = Long.rotateRight(v[d] ^ v[a], 16);
                v[c] += v[d];
                v[b] = Long.rotateRight(v[b] ^ v[c], 63);
            }
        }
        for (int place = 0; place < 8; place++) state[place] ^= v[place] ^ v[place + 8];
    }

    public static long hash(String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        long[] state = IV.clone();
        state[0] ^= 0x01010008L; // no key, a digest of 8 bytes
        for (int start = 0; start == 0 || start < bytes.length; start += 128) {
            byte[] part = Arrays.copyOf(Arrays.copyOfRange(bytes, start, Math.min(start + 128, bytes.length)), 128);
            long[] block = new long[16];
            ByteBuffer.wrap(part).order(ByteOrder.LITTLE_ENDIAN).asLongBuffer().get(block);
            int stop = Math.min(start + 128, bytes.length);
            compress(state, block, stop, stop == bytes.length);
        }
        return state[0];
    }

    public static void main(String[] args) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) System.out.println(hash(line));
    }
}
