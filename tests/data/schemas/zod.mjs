// Writes zod.json, the schemas that zod's users send:
//   npm install zod@4 zod3@npm:zod@3 zod-to-json-schema && node zod.mjs > zod.json

import * as four from "zod";
import * as three from "zod3";
import { zodToJsonSchema } from "zod-to-json-schema";

const shared = (z) => ({
  record: z.record(z.string(), z.number()),
  optional: z.object({ a: z.string().optional(), b: z.number() }),
  nullable: z.object({ a: z.string().nullable(), b: z.number().int().nullable() }),
  integer: z.object({ a: z.number().int(), b: z.number().int().min(1).max(10), c: z.number().positive() }),
  multiple: z.object({ a: z.number().multipleOf(0.5) }),
  union: z.union([z.string(), z.number(), z.object({ a: z.boolean() })]),
  discriminated: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("circle"), radius: z.number() }),
    z.object({ kind: z.literal("square"), side: z.number() }),
  ]),
  enumeration: z.object({ a: z.enum(["red", "green"]), b: z.literal(5), c: z.literal(null) }),
  tuple: z.object({ a: z.tuple([z.string(), z.number()]), b: z.tuple([z.string()]).rest(z.number()) }),
  strings: z.object({
    email: z.string().email(), url: z.string().url(), uuid: z.string().uuid(),
    datetime: z.string().datetime(), regex: z.string().regex(/^[a-z]+-\d+$/),
    short: z.string().min(1).max(20), starts: z.string().startsWith("https://"), ends: z.string().endsWith(".de"),
    includes: z.string().includes("@"),
  }),
  array: z.object({ a: z.array(z.string()).min(1).max(5), b: z.array(z.number()).nonempty() }),
  set: z.object({ a: z.array(z.enum(["a", "b"])) }),
  described: z.object({ a: z.string().describe("A name"), b: z.number().default(3) }).describe("All of it"),
  strict: z.object({ a: z.string() }).strict(),
  passthrough: z.object({ a: z.string() }).passthrough(),
  intersection: z.intersection(z.object({ a: z.string() }), z.object({ b: z.number() })),
  partial: z.object({ a: z.string(), b: z.object({ c: z.boolean() }) }).partial(),
  catchall: z.object({ a: z.string() }).catchall(z.number()),
  any: z.object({ a: z.any(), b: z.unknown() }),
});

const recursive = (z) => {
  const node = z.lazy(() => z.object({ value: z.number(), children: z.array(node) }));
  return node;
};

const zod4 = {
  ...shared(four.z),
  recursive: recursive(four.z),
  recordOfEnum: four.z.partialRecord(four.z.enum(["a", "b"]), four.z.number()),
  fullRecordOfEnum: four.z.record(four.z.enum(["a", "b"]), four.z.number()),
  formats: four.z.object({
    email: four.z.email(), url: four.z.url(), uuid: four.z.uuid(), ipv4: four.z.ipv4(), ipv6: four.z.ipv6(),
    date: four.z.iso.date(), time: four.z.iso.time(), datetime: four.z.iso.datetime(), duration: four.z.iso.duration(),
    base64: four.z.base64(), nanoid: four.z.nanoid(), cuid2: four.z.cuid2(), ulid: four.z.ulid(), emoji: four.z.emoji(),
    cidr: four.z.cidrv4(), jwt: four.z.jwt(), e164: four.z.e164(),
  }),
  int: four.z.object({ a: four.z.int(), b: four.z.int32(), c: four.z.float32(), d: four.z.uint32() }),
  templateLiteral: four.z.templateLiteral(["v", four.z.number(), ".", four.z.enum(["a", "b"])]),
  json: four.z.json(),
};

const zod3 = {
  ...shared(three.z),
  recursive: recursive(three.z),
  recordOfEnum: three.z.record(three.z.enum(["a", "b"]), three.z.number()),
  set3: three.z.object({ a: three.z.set(three.z.enum(["a", "b"])) }),
  map: three.z.map(three.z.string(), three.z.number()),
  bigint: three.z.object({ a: three.z.bigint().min(-9223372036854775808n).max(9223372036854775807n) }),
};

const found = {};
for (const [name, schema] of Object.entries(zod4)) {
  found[`zod4.${name}`] = four.z.toJSONSchema(schema);
  found[`zod4.${name}.draft7`] = four.z.toJSONSchema(schema, { target: "draft-7" });
}
for (const [name, schema] of Object.entries(zod3)) {
  found[`zod3.${name}`] = zodToJsonSchema(schema);
  found[`zod3.${name}.named`] = zodToJsonSchema(schema, "Answer");
  found[`zod3.${name}.openai`] = zodToJsonSchema(schema, { target: "openApi3" });
}
const text = (value) =>
  JSON.stringify(value, (_, item) => (typeof item === "bigint" ? `${item}n` : item)).replace(/"(-?\d+)n"/g, "$1");
const lines = Object.entries(found).map(([name, schema]) => `${text(name)}: ${text(schema)}`);
console.log(`{\n${lines.join(",\n")}\n}`);
