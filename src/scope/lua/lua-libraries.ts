/**
 * The server has one Lua for everybody's scripts. What its libraries keep or tell of all of them is not given to a script in a scope:
 *
 *   cjson           its settings (encode_number_precision, …) count for every script: an instance of its own in its place
 *   math            one sequence of random numbers for all: one of its own, which gives the same numbers from the same seed
 *   collectgarbage  stops or drives everybody's collector, and tells how much all use: does nothing and gives 0
 *   gcinfo          the same
 *   os              the processor time of the server: counted from the script's start
 *
 * A script whose text uses nothing of that keeps the server's own libraries, which costs nothing. The text is looked at word by
 * word, strings and comments included: there is no other way to a global than by its name, or by `_G`, which is hidden.
 */

interface Library {
  /** What of it keeps and tells nothing, so that the server's own can be used. */
  readonly harmless: RegExp | undefined;
  /** Lua that gives the script's own. `$R` gives `random` and `randomseed`; `$p` is the real `redis.pcall`. */
  readonly own: string;
}

const LIBRARIES: ReadonlyMap<string, Library> = new Map([
  ['cjson', { harmless: /^\s*\.\s*(?:encode|decode|null|_NAME|_VERSION)\b/, own: 'cjson.new()' }],
  [
    'math',
    {
      harmless: /^\s*\.\s*(?!random)[a-z]\w*\b/,
      own: '(function() local m={} for k,v in pairs(math) do m[k]=v end m.random,m.randomseed=$R() return m end)()',
    },
  ],
  ['collectgarbage', { harmless: undefined, own: 'function() return 0 end' }],
  ['gcinfo', { harmless: undefined, own: 'function() return 0 end' }],
  [
    'os',
    {
      harmless: undefined,
      own: "(function() local o=rawget(_G,'os') if o then local c=o.clock local s=c() return {clock=function() return c()-s end} end end)()",
    },
  ],
]);

export const LIBRARY_NAMES: readonly string[] = [...LIBRARIES.keys()];

/**
 * The servers' `math.random` and `math.randomseed` (`rand.c`, the generator of drand48), of which each call of `$R` gives a pair
 * with a state of its own, in two halves of 24 bits. The first seed is of the time and of a place in memory, since the time stands
 * still inside a transaction.
 */
const RANDOM = `
 local function $R()
  local floor,l,h=math.floor
  local function int(v,at,name)
   local i=tonumber(v)
   if not i then error("bad argument #"..at.." to '"..name.."' (number expected, got "..type(v)..")",3) end
   return i<0 and math.ceil(i) or floor(i)
  end
  local function seed(v) v=v%4294967296 l=v%256*65536+13070 h=floor(v/256) end
  local function draw()
   local n=15525485*l+11
   h=(15525485*h+1502*l+floor(n/16777216))%16777216
   l=n%16777216
   return floor((h*16777216+l)/131072)%2147483647/2147483647
  end
  local t=$p('TIME')
  seed(t[1]*1000003+t[2]+tonumber(string.match(tostring({}),'%x+$') or '0',16)/8)
  return function(...)
   local r,m,n=draw(),...
   local args=select('#',...)
   if args==0 then return r end
   if args>2 then error('wrong number of arguments',2) end
   m=int(m,1,'random')
   if args==1 then m,n=1,m else n=int(n,2,'random') end
   if m>n then error("bad argument #"..args.." to 'random' (interval is empty)",2) end
   return floor(r*(n-m+1))+m
  end,function(v) seed(int(v,1,'randomseed')) end
 end`;

/** Whether a script may use the server's own library of this name. */
function isHarmless(source: string, name: string, harmless: RegExp | undefined): boolean {
  if (source.includes('_G')) return false;
  for (const { index } of source.matchAll(new RegExp(`\\b${name}\\b`, 'g'))) {
    if (harmless?.test(source.slice(index + name.length, index + name.length + 64)) !== true) return false;
  }
  return true;
}

/** The libraries that a script or a library of functions must have its own of. */
function ownLibraries(source: string): string[] {
  return [...LIBRARIES].filter(([name, { harmless }]) => !isHarmless(source, name, harmless)).map(([name]) => name);
}

/** Whether a script needs none of its own. */
export function usesHarmlessLibraries(source: string): boolean {
  return ownLibraries(source).length === 0;
}

/** Lua that defines the script's own ones as locals, each before its use. */
export function ownLibrariesOfScript(source: string): string[] {
  const names = ownLibraries(source);
  if (names.length === 0) return [];
  return [
    ...(names.includes('math') ? [RANDOM] : []),
    `local ${names.join(',')}=${names.map((name) => LIBRARIES.get(name)!.own).join(',')}`,
  ];
}

/**
 * The same for a library of functions, which finds globals only while one of them runs: locals in `declared`, and what each call
 * does in `begun`. Its random numbers go on from call to call.
 */
export function ownLibrariesOfFunctions(source: string): { declared: string[]; begun: string } {
  const names = ownLibraries(source);
  if (names.length === 0) return { declared: [], begun: '' };
  const random = names.includes('math');
  const own = names.map((name) => LIBRARIES.get(name)!.own.replace('$R()', '$u,$v')).join(',');
  return {
    declared: [
      ...(random ? [`local $u,$v ${RANDOM}`] : []),
      `local function $l() ${random ? 'if not $u then $u,$v=$R() end' : ''} return ${own} end`,
      `local ${names.join(',')}`,
    ],
    begun: `${names.join(',')}=$l()`,
  };
}
