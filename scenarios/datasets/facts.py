"""Facts that do not depend on a year or an opinion: category -> (statement to finish, "key=answer|other; …").

Plain data for make.py. The first two facts of a category are the examples shown before each of its items.
Answers are compared without regard to case, and as whole words.
"""

CATEGORIES: dict[str, tuple[str, str]] = {
    "capital": (
        "The capital of {} is",
        (
            "France=Paris; Spain=Madrid; Italy=Rome; Germany=Berlin; Austria=Vienna; Portugal=Lisbon; Greece=Athens; "
            "Poland=Warsaw; Hungary=Budapest; Sweden=Stockholm; Norway=Oslo; Denmark=Copenhagen; Finland=Helsinki; "
            "Ireland=Dublin; Belgium=Brussels; Switzerland=Bern|Berne; Romania=Bucharest; Bulgaria=Sofia; "
            "Serbia=Belgrade; Croatia=Zagreb; Slovenia=Ljubljana; Slovakia=Bratislava; Ukraine=Kyiv|Kiev; "
            "Russia=Moscow; Turkey=Ankara; Egypt=Cairo; Kenya=Nairobi; Ethiopia=Addis Ababa; Ghana=Accra; "
            "Senegal=Dakar; Nigeria=Abuja; Morocco=Rabat; Tunisia=Tunis; Algeria=Algiers; Libya=Tripoli; "
            "Uganda=Kampala; Zimbabwe=Harare; Zambia=Lusaka; Angola=Luanda; Rwanda=Kigali; Iran=Tehran; Iraq=Baghdad; "
            "Syria=Damascus; Lebanon=Beirut; Jordan=Amman; Saudi Arabia=Riyadh; Afghanistan=Kabul; "
            "Pakistan=Islamabad; India=New Delhi|Delhi; Nepal=Kathmandu; Bangladesh=Dhaka; Thailand=Bangkok; "
            "Vietnam=Hanoi; Cambodia=Phnom Penh; Malaysia=Kuala Lumpur; the Philippines=Manila; China=Beijing; "
            "Japan=Tokyo; South Korea=Seoul; North Korea=Pyongyang; Mongolia=Ulaanbaatar|Ulan Bator; "
            "Australia=Canberra; New Zealand=Wellington; Canada=Ottawa; the United States=Washington; Mexico=Mexico "
            "City; Cuba=Havana; Jamaica=Kingston; Guatemala=Guatemala City; Panama=Panama City; "
            "Colombia=Bogotá|Bogota; Venezuela=Caracas; Ecuador=Quito; Peru=Lima; Chile=Santiago; Argentina=Buenos "
            "Aires; Uruguay=Montevideo; Paraguay=Asunción|Asuncion; Brazil=Brasília|Brasilia; "
            "Iceland=Reykjavik|Reykjavík; England=London; Scotland=Edinburgh; Wales=Cardiff"
        ),
    ),
    "symbol": (
        "The chemical symbol for {} is",
        (
            "hydrogen=H; helium=He; lithium=Li; carbon=C; nitrogen=N; oxygen=O; fluorine=F; neon=Ne; sodium=Na; "
            "magnesium=Mg; aluminum=Al; silicon=Si; phosphorus=P; sulfur=S; chlorine=Cl; argon=Ar; potassium=K; "
            "calcium=Ca; titanium=Ti; chromium=Cr; manganese=Mn; iron=Fe; cobalt=Co; nickel=Ni; copper=Cu; zinc=Zn; "
            "bromine=Br; silver=Ag; tin=Sn; iodine=I; platinum=Pt; gold=Au; mercury=Hg; lead=Pb; uranium=U"
        ),
    ),
    "atomic number": (
        "The atomic number of {} is",
        (
            "hydrogen=1|one; helium=2|two; lithium=3|three; beryllium=4|four; boron=5|five; carbon=6|six; "
            "nitrogen=7|seven; oxygen=8|eight; fluorine=9|nine; neon=10|ten; sodium=11|eleven; magnesium=12|twelve; "
            "aluminum=13; silicon=14; iron=26; copper=29; silver=47; gold=79; uranium=92"
        ),
    ),
    "next month": (
        "The month after {} is",
        (
            "January=February; February=March; March=April; April=May; May=June; June=July; July=August; "
            "August=September; September=October; October=November; November=December; December=January"
        ),
    ),
    "month before": (
        "The month before {} is",
        (
            "January=December; February=January; March=February; April=March; May=April; June=May; July=June; "
            "August=July; September=August; October=September; November=October; December=November"
        ),
    ),
    "next day": (
        "The day after {} is",
        (
            "Monday=Tuesday; Tuesday=Wednesday; Wednesday=Thursday; Thursday=Friday; Friday=Saturday; "
            "Saturday=Sunday; Sunday=Monday"
        ),
    ),
    "day before": (
        "The day before {} is",
        (
            "Monday=Sunday; Tuesday=Monday; Wednesday=Tuesday; Thursday=Wednesday; Friday=Thursday; Saturday=Friday; "
            "Sunday=Saturday"
        ),
    ),
    "opposite": (
        'The opposite of "{}" is',
        (
            "hot=cold; big=small|little; up=down; left=right; day=night; good=bad|evil; fast=slow; happy=sad|unhappy; "
            "rich=poor; young=old; wet=dry; open=closed|close|shut; light=dark|heavy; hard=soft|easy; high=low; "
            "strong=weak; full=empty; clean=dirty|unclean; near=far; loud=quiet|soft|silent; thick=thin; wide=narrow; "
            "true=false; black=white; first=last; win=lose; love=hate; begin=end|finish; early=late; always=never; "
            "inside=outside; push=pull; buy=sell; above=below; life=death; war=peace; friend=enemy|foe; north=south; "
            "east=west; tall=short; long=short; heavy=light; deep=shallow; sharp=dull|blunt; sweet=sour|bitter; "
            "brave=cowardly|coward|afraid|fearful; noisy=quiet|silent; success=failure; positive=negative; "
            "maximum=minimum; increase=decrease; yes=no; on=off; asleep=awake; dead=alive; summer=winter; "
            "beautiful=ugly; before=after; expensive=cheap|inexpensive; difficult=easy; smooth=rough; entrance=exit"
        ),
    ),
    "young": (
        "A baby {} is called a",
        (
            "dog=puppy|pup; cat=kitten; cow=calf; horse=foal; sheep=lamb; pig=piglet; goat=kid; bear=cub; lion=cub; "
            "deer=fawn; duck=duckling; goose=gosling; chicken=chick; kangaroo=joey; frog=tadpole; swan=cygnet; "
            "elephant=calf; whale=calf; tiger=cub; seal=pup; fox=cub|kit|pup; rabbit=kit|kitten|bunny"
        ),
    ),
    "sound": (
        "The sound made by {} is called",
        (
            "a cow=moo; a lion=roar; a dog=bark|barking|woof; a cat=meow|meowing|purr|miaow; a duck=quack|quacking; a "
            "sheep=baa|bleat; a pig=oink|grunt; a horse=neigh|whinny; a snake=hiss|hissing; a wolf=howl|howling; a "
            "bee=buzz|buzzing; a frog=croak|ribbit|croaking; an owl=hoot|hooting; a bird=tweet|chirp|song"
        ),
    ),
    "color": (
        "The color of {} is",
        (
            "snow=white; grass=green; blood=red; coal=black; a ripe banana=yellow; a lemon=yellow; a clear sky=blue; "
            "an emerald=green; a ruby=red; a sapphire=blue; milk=white; a crow=black; a carrot=orange; a polar "
            "bear=white; chocolate=brown; a flamingo=pink; spinach=green; gold=yellow|gold|golden"
        ),
    ),
    "count": (
        "The number of {} is",
        (
            "days in a week=7|seven; months in a year=12|twelve; hours in a day=24|twenty; minutes in an "
            "hour=60|sixty; seconds in a minute=60|sixty; sides of a triangle=3|three; sides of a square=4|four; "
            "sides of a pentagon=5|five; sides of a hexagon=6|six; sides of an octagon=8|eight; legs of a "
            "spider=8|eight; legs of an insect=6|six; legs of a dog=4|four; letters in the English "
            "alphabet=26|twenty; planets in the solar system=8|eight; years in a century=100|one hundred; years in a "
            "decade=10|ten; fingers on one hand=5|five; arms of an octopus=8|eight; wheels on a bicycle=2|two; wheels "
            "on a car=4|four; days in a leap year=366; inches in a foot=12|twelve; cents in a dollar=100|one hundred; "
            "centimeters in a meter=100|one hundred; grams in a kilogram=1000|1,000|one thousand; players on a soccer "
            "team=11|eleven; strings on a violin=4|four; states in the United States=50|fifty"
        ),
    ),
    "language": (
        "The main language spoken in {} is",
        (
            "France=French; Germany=German; Italy=Italian; Spain=Spanish; Portugal=Portuguese; Brazil=Portuguese; "
            "Mexico=Spanish; Argentina=Spanish; Russia=Russian; Japan=Japanese; China=Chinese|Mandarin; "
            "Poland=Polish; Greece=Greek; Turkey=Turkish; Sweden=Swedish; Norway=Norwegian; Denmark=Danish; "
            "Finland=Finnish; Hungary=Hungarian; Egypt=Arabic; Saudi Arabia=Arabic; Iran=Persian|Farsi; "
            "Thailand=Thai; Vietnam=Vietnamese; Korea=Korean; Australia=English; Austria=German; Colombia=Spanish; "
            "Ukraine=Ukrainian; Iraq=Arabic; Cuba=Spanish; Romania=Romanian; Bulgaria=Bulgarian; the "
            "Netherlands=Dutch; Iceland=Icelandic"
        ),
    ),
    "continent": (
        "{} is a country on the continent of",
        (
            "Kenya=Africa; Japan=Asia; Nigeria=Africa; Ghana=Africa; Morocco=Africa; China=Asia; India=Asia; "
            "Thailand=Asia; Vietnam=Asia; France=Europe; Germany=Europe; Spain=Europe; Italy=Europe; Poland=Europe; "
            "Sweden=Europe; Brazil=South America; Peru=South America; Chile=South America; Argentina=South America; "
            "Canada=North America; Mexico=North America; Algeria=Africa; Nepal=Asia; Mongolia=Asia; Greece=Europe; "
            "Bolivia=South America; Zambia=Africa; Portugal=Europe; Ethiopia=Africa; Laos=Asia"
        ),
    ),
    "past": (
        'The past tense of "{}" is',
        (
            "go=went; see=saw; eat=ate; run=ran; come=came; take=took; give=gave; make=made; write=wrote; "
            "speak=spoke; drink=drank; sing=sang; swim=swam; begin=began; break=broke; choose=chose; drive=drove; "
            "fly=flew; grow=grew; know=knew; think=thought; buy=bought; bring=brought; teach=taught; catch=caught; "
            "sleep=slept; keep=kept; leave=left; find=found; tell=told; sell=sold; stand=stood; win=won; hold=held; "
            "build=built; send=sent"
        ),
    ),
    "plural": (
        'The plural of "{}" is',
        (
            "mouse=mice; child=children; foot=feet; tooth=teeth; goose=geese; man=men; woman=women; leaf=leaves; "
            "knife=knives; wolf=wolves; city=cities; baby=babies; box=boxes; church=churches; ox=oxen; life=lives; "
            "potato=potatoes; half=halves; wife=wives; story=stories; bus=buses|busses; party=parties; "
            "country=countries"
        ),
    ),
    "science": (
        "{}",
        (
            "The planet closest to the Sun is=Mercury; The largest planet in the solar system is=Jupiter; The star at "
            "the center of the solar system is=the Sun|Sun; The force that pulls objects to the ground "
            "is=gravity|called gravity; Water is made of hydrogen and=oxygen; Plants make their food "
            "by=photosynthesis|the process of photosynthesis; The gas that humans need to breathe is=oxygen; Frozen "
            "water is called=ice; The largest ocean on Earth is the=Pacific; The largest animal on Earth is the=blue "
            "whale; The tallest mountain in the world is=Mount Everest|Everest|Mt. Everest; The organ that pumps "
            "blood is the=heart; The Earth revolves around the=Sun; The Moon revolves around the=Earth; A scientist "
            "who studies stars is called an=astronomer|astrophysicist; The center of an atom is called the=nucleus; "
            "Table salt is made of sodium and=chlorine|chloride; The red planet is=Mars; The hardest natural material "
            "is=diamond; The process by which water turns into vapor is called=evaporation; Bees make=honey; A "
            "caterpillar turns into a=butterfly|moth; The fastest land animal is the=cheetah; The gas that plants "
            "take in from the air is=carbon dioxide; The largest organ of the human body is the=skin; The planet with "
            "the famous rings is=Saturn; The tallest animal on land is the=giraffe; Humans breathe with their=lungs; "
            "Humans see with their=eyes; Humans hear with their=ears"
        ),
    ),
}
